"""The keys that say how a run uses its devices; part of keys.KEYS."""

from paligemma_jax.config import spec

# Every line of the table says them.
Key, RULES = spec.Key, spec.RULES

KEYS = (
    Key(
        "mesh",
        [("data", -1)],
        RULES,
        "axes of the device mesh; -1: all devices that are left",
        rule_types=(int,),
    ),
    Key(
        "sharding_strategy",
        [(".*", "fsdp")],
        RULES,
        "rules [(regex, replicate | fsdp | axis)]",
        rule_types=(str, *RULES),
    ),
    Key(
        "profile_steps",
        0,
        (int,),
        "write a profiler trace of so many steps, from the third on, into profile/",
        least=0,
    ),
    Key("allow_over_memory", False, (bool,), "start although the memory plan says: too much"),
)
