"""A deployment on a virtual clock: the scheduler that serves, and the planner's cost model in the engine's place.

No I/O, no clock. Deterministic: the same plan, facts, trace and seed give the same result.
"""
