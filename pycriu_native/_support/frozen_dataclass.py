"""Frozen dataclasses without the import time of ``dataclasses``.

That module imports ``inspect``, and compiles source text for each class: half of the time of
``import pycriu_native``. The classes of this module store the given values in ``__dict__``, so that
an unset field takes no memory. ``dataclasses.fields``, ``replace``, ``asdict``, ``copy.replace``,
``match``, ``pprint`` and ``inspect.signature`` work with them: the attributes that these need are
created on first use. For type checkers they are dataclasses of the standard library.
``cached_property`` works too, and is not part of the value.

Only the features that this package uses are implemented: classes are frozen, and all or none of
their fields are keyword-only.
"""

from __future__ import annotations

from operator import attrgetter

from .light_typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
else:

    class field:
        """As ``dataclasses.field``. A field without ``init`` is set by ``__post_init__``."""

        def __init__(
            self,
            *,
            default: Any = ...,
            default_factory: Any = None,
            init: bool = True,
            compare: bool = True,
            repr: bool = True,
        ) -> None:
            self.default = default
            self.default_factory = default_factory
            self.init = init
            self.compare = compare
            self.repr = repr

    def replace(value: Any, /, **changes: Any) -> Any:
        """A variant of a value of one of these classes."""
        given = {
            name: each for name, each in _getstate(value).items() if name not in value._computed
        }
        return type(value)(**{**given, **changes})

    def dataclass(
        *,
        frozen: bool,
        kw_only: bool = False,
        slots: bool = False,
        repr: bool = True,
        eq: bool = True,
    ) -> Any:
        """As ``dataclasses.dataclass``; ``slots`` is only for type checkers."""
        if not frozen:
            raise TypeError("only frozen classes are supported")

        return lambda cls: _made(cls, kw_only, repr, eq)


def _made(cls: Any, kw_only: bool, repr: bool, eq: bool) -> Any:
    own = {name: how for name, how in cls.__annotations__.items() if not how.startswith("ClassVar")}
    fields = {**getattr(cls, "_fields", {}), **own}
    given = dict(getattr(cls, "_given", {}))
    for name in own:
        value = cls.__dict__.get(name)
        if isinstance(value, field):  # type: ignore[arg-type]
            given[name] = value
            if value.default is ...:
                delattr(cls, name)
            else:
                setattr(cls, name, value.default)
    compared = [name for name in fields if name not in given or given[name].compare]

    cls._fields, cls._given = fields, given
    cls._computed = frozenset(name for name, how in given.items() if not how.init)
    taken = tuple(name for name in fields if name not in cls._computed)
    factories = {name: how.default_factory for name, how in given.items() if how.default_factory}
    cls._required = frozenset(
        name for name in taken if not hasattr(cls, name) and name not in factories
    )
    cls._compared = staticmethod(attrgetter(*compared) if compared else lambda value: ())
    cls.__init__ = _init(cls, taken, factories, kw_only)
    if eq:
        cls.__eq__, cls.__hash__ = _eq, _hash
    cls.__setattr__, cls.__delattr__ = _setattr, _delattr
    cls.__getstate__, cls.__replace__ = _getstate, replace
    type.__setattr__(cls, "__match_args__", () if kw_only else taken)
    if repr:
        cls.__repr__ = _repr
    cls.__dataclass_fields__ = _Later("__dataclass_fields__", kw_only)
    cls.__dataclass_params__ = _Later("__dataclass_params__", kw_only)
    cls.__signature__ = _Later("__signature__", kw_only)
    return cls


def _init(cls: Any, names: tuple[str, ...], factories: dict[str, Any], kw_only: bool) -> Any:
    known = frozenset(names)
    required = cls._required
    finish = hasattr(cls, "__post_init__")
    positional = () if kw_only else names

    def __init__(self: Any, /, *given: object, **named: object) -> None:
        values = self.__dict__
        if given:
            if len(given) > len(positional):
                raise TypeError(f"{cls.__name__} takes {len(positional)} arguments by position")
            values.update(zip(positional, given, strict=False))
            if twice := values.keys() & named:
                raise TypeError(f"{cls.__name__} got two values for {min(twice)!r}")
        if not known.issuperset(named):
            unknown = min(named.keys() - known)
            raise TypeError(f"{cls.__name__} got an unexpected keyword argument {unknown!r}")
        values.update(named)
        if not required <= values.keys():
            missing = ", ".join(name for name in names if name in required - values.keys())
            raise TypeError(f"{cls.__name__} needs a value for {missing}")
        for name, factory in factories.items():
            if name not in values:
                values[name] = factory()
        if finish:
            self.__post_init__()

    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    return __init__


def _eq(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return self._compared(self) == self._compared(other)


def _hash(self: Any) -> int:
    return hash(self._compared(self))


def _getstate(self: Any) -> dict[str, Any]:
    """The fields that are set, without cached properties."""
    fields = self._fields
    return {name: value for name, value in self.__dict__.items() if name in fields}


def _repr(self: Any) -> str:
    given = self._given
    shown = ", ".join(
        f"{name}={getattr(self, name)!r}"
        for name in self._fields
        if name not in given or given[name].repr
    )
    return f"{type(self).__qualname__}({shown})"


def _setattr(self: Any, name: str, value: object) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(self: Any, name: str) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot delete field {name!r}")


class _Later:
    """A class attribute that only functions of the standard library use."""

    def __init__(self, name: str, kw_only: bool) -> None:
        self._name = name
        self._kw_only = kw_only

    def __get__(self, instance: object, owner: Any) -> Any:
        """Create a class with the same fields by ``dataclasses``, and copy its attribute."""
        import dataclasses
        import inspect

        def described(name: str) -> Any:
            how = owner._given.get(name) or field()
            options: Any = {"init": how.init, "compare": how.compare, "repr": how.repr}
            if how.default_factory is not None:
                options["default_factory"] = how.default_factory
            elif name not in owner._required and how.init:
                options["default"] = getattr(owner, name)
            return dataclasses.field(**options)

        twin = dataclasses.make_dataclass(
            owner.__name__,
            [(name, how, described(name)) for name, how in owner._fields.items()],
            frozen=True,
            kw_only=self._kw_only,
        )
        if self._name == "__signature__":
            value: Any = inspect.signature(twin)
        else:
            value = getattr(twin, self._name)
        setattr(owner, self._name, value)
        return value
