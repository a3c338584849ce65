"""Section 2: do the few divergent positions cause the gain?"""
