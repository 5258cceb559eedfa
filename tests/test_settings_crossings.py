"""Settings are handed down: how often a room takes them out of what a lower room made.

A crossing is a place, in the doors or in a room that imports assembly, that reads the attribute
`settings` of anything but `self`: `built.settings`, `one.settings.decode`, also where it is handed
on at once or kept in a variable. What a function is given as an argument is no crossing, nor is
what its own room keeps for it: `planned.settings` and `recipe.settings` in runs, which makes both,
and `subject.settings` in evaluation, which makes what a report is of. Everything else should get
the value, or a small frozen dataclass of values.
"""

import ast
import functools
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / "paligemma_jax"
MOST = 10
# Room -> what it calls objects of its own that hold settings.
OWN = {"runs": {"planned", "recipe"}, "evaluation": {"subject"}}


@functools.cache
def rooms() -> dict[str, dict[str, ast.Module]]:
    """Returns room -> path -> parsed text, of rooms that import assembly; doors are of room ""."""
    files: dict[str, dict[str, ast.Module]] = {}
    uses_assembly = {""}
    for path in sorted(PACKAGE.rglob("*.py")):
        name, text = path.relative_to(PACKAGE).as_posix(), path.read_text()
        room = name.rpartition("/")[0].partition("/")[0]
        files.setdefault(room, {})[name] = ast.parse(text)
        if "from paligemma_jax.assembly" in text:
            uses_assembly.add(room)
    return {room: files[room] for room in sorted(uses_assembly - {"assembly"})}


def crossings(room: str, path: str, tree: ast.Module) -> list[str]:
    """Returns 'path:line: what is read' for each crossing of a file."""
    own = {"self", *OWN.get(room, ())}
    return [
        f"{path}:{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr == "settings"
        and not (isinstance(node.value, ast.Name) and node.value.id in own)
    ]


def test_all_rooms_above_assembly_are_looked_at():
    assert rooms().keys() >= {"", "runs", "evaluation", "prediction", "checks"}
    assert not rooms().keys() & {"assembly", "settings", "data", "models", "training"}


def test_settings_cross_from_lower_rooms_to_higher_ones_at_most_ten_times():
    found = [
        line
        for room, files in rooms().items()
        for path, tree in files.items()
        for line in crossings(room, path, tree)
    ]
    assert len(found) <= MOST, "hand the values down instead:\n" + "\n".join(found)


def test_crossings_are_counted():
    source = """
def use(built, planned, settings):
    first, second = built.settings.lr, settings.lr
    return helper(self.built.settings, planned.settings.wd, replace(built, settings=settings))
"""
    tree = ast.parse(source)
    assert sorted(crossings("runs", "runs/a.py", tree)) == [
        "runs/a.py:3: built.settings",
        "runs/a.py:4: self.built.settings",
    ]
    assert len(crossings("prediction", "prediction/a.py", tree)) == 3
