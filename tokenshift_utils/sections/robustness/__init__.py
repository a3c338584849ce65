"""Section 5: does it depend on truncation, trajectories, sampling?"""
