"""A GPU that is not there, for tests: `python -m fakegpu CASE ...` prints what each case counted, as JSON.

What lies on the CPU is real. What lies on the GPU has a shape, a type and a place, and no numbers, so every operation
obeys the rules of devices and types and takes no time. A number that is asked of it is 1.
"""
