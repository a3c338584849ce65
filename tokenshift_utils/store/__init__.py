"""Records as checksummed files, and the processes that compute them."""
