"""What measured runs taught: figures per strategy and workload, and which of several plans to trust next. Pure.

No I/O, no clock, and no randomness but that of a seed. `records` are what happened, `state` folds them, `bandit`
corrects the cost model by them, `choose` picks a plan.
"""
