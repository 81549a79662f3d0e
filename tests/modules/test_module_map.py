import pytest

from segkd.errors import ConfigError
from segkd.modules.module_map import require_names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v1.5", "teachers.v1.5: the name of an entry may not contain"),
        ("a/b", "may not contain '/' or '.'"),
        ("half", "teachers.half: this name is taken"),
        ("train", "taken"),
        ("values", "taken"),
        ("task", "taken"),
    ],
)
def test_names_that_a_module_cannot_have_are_one_message(name, message):
    with pytest.raises(ConfigError, match=message):
        require_names("teachers", ["main", name], ("task",))
    require_names("teachers", ["main", "kd_2", "große-netze"], ("task",))
