"""The keys that say how a run uses its devices; part of keys.KEYS."""

from paligemma_jax.settings import spec

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
        "rules [(regex, tactic)]; a tactic is replicate, fsdp, fsdp(axis='data', "
        "min_size_to_shard_mb=4), an axis (fsdp over it), shard_dim(axis='model', dim=-1), several "
        "of these joined by | (one after the other), or the axis of each dimension: (None, 'data')",
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
