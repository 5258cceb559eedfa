import hypothesis

# The same examples in every run, and no time limit per example: the machine may be busy.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, max_examples=100
)
hypothesis.settings.load_profile("repeatable")
