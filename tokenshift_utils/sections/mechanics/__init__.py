"""Section 3: new tokens, or known candidates in another order?"""
