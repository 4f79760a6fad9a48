"""A Jinja environment for templates from outside: no way out of it, and no way to run or to grow for ever.

jinja2's ImmutableSandboxedEnvironment keeps a template from Python's internals. It does not keep one from
taking all time or memory: nested loops, `'x' * 10**10`, a text that doubles in a loop. Here every loop and
call is paid from a budget of steps, and what could make a long text or number out of short ones is looked
at before it is done.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import _PassArg
from jinja2.visitor import NodeTransformer

__all__ = ["Budget", "Environment", "refuse_longer"]

_T = TypeVar("_T")
MAX_STEPS = 200_000
MAX_TEXT = 1 << 22  # characters of the text, and of any value on the way
_MAX_ITEMS = 1 << 16  # parts of any value, lists within lists written out
_TEXT_PER_STEP, _TEXT_PER_ITEM = 1024, 64  # what a step pays for
_MAX_BITS = 1 << 16
# Methods and filters with an argument, a number or a text, that a piece of the result may be as long as.
_SIZED = frozenset(
    {"batch", "center", "expandtabs", "indent", "ljust", "rjust", "slice", "tojson", "truncate", "zfill"}
)
# Methods that lead to bytes, which nothing here counts, or put a text in the place of each character.
_REFUSED = frozenset({"encode", "to_bytes", "translate"})
_DROPPED = ("urlize", "wordwrap")  # filters that write a text of their argument once for each word
# In a format: a width of five digits, or one that is itself an argument.
_WIDE = re.compile(r"\d{5}|\*|:[^}]*\{")
# Filters through which the parsed template is sent; no template can write these names.
_LOOP, _CONCATENATION, _VALUE = "{% for %}", "~", "{% set %}"


class Budget:
    """Steps that one rendering may still take; it travels among the rendering's variables."""

    KEY = "budget of steps"  # no name that a template could write

    def __init__(self) -> None:
        self.left = MAX_STEPS
        self.written = 0

    def pay(self, steps: int) -> None:
        """Take `steps`; SecurityError when there are none left."""
        self.left -= steps
        if self.left < 0:
            raise SecurityError(f"takes more than {MAX_STEPS:,} steps")

    def pay_for(self, value: _T) -> _T:
        """Take a step, and one more for each thousand characters of `value`, which must not be too long."""
        self.pay(1 + _extent(value) // _TEXT_PER_STEP)
        return value

    def pay_for_output(self, piece: str) -> None:
        """Take a step for a piece of the text, which as a whole must not be too long."""
        self.pay(1)
        self.written += len(piece)
        refuse_longer(self.written)


def _extent(value: object) -> int:
    """About the characters that a value would have if it were printed; SecurityError for too many."""
    total, items, left = 0, 0, [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, Mapping):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            left += item
        items += 1
        if items > _MAX_ITEMS:
            raise SecurityError(f"makes a value of more than {_MAX_ITEMS:,} parts")
        refuse_longer(total)
    return total + items * _TEXT_PER_ITEM


class _Generation(Extension):
    """HF's `{% generation %}` block, which marks what the assistant said: its content, as it is."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own form

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Rewriting(NodeTransformer):
    """Sends through filters what jinja2 does without asking: loops, output, `~`, blocks, lists in lists."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  # jinja2's own form
        if node.recursive:
            raise SecurityError("has a recursive loop")
        self.generic_visit(node)
        node.iter = _through(_LOOP, node.iter)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        """Each piece is paid as it is written: blocks and macros join theirs before anyone sees the whole."""
        self.generic_visit(node)
        node.nodes = [_through(_VALUE, each) for each in node.nodes]
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.filter = _through(_VALUE, node.filter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        parts = [self.visit(part) for part in node.nodes]
        return _through(_CONCATENATION, nodes.List(parts, lineno=node.lineno))

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return _through(_VALUE, self.generic_visit(node))

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return _through(_VALUE, self.generic_visit(node))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through(_VALUE, node) if node.ctx == "load" else node


def _through(name: str, node: Any) -> nodes.Filter:  # noqa: ANN401  # an expression, or None for a block
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno if node else 1)


class Environment(ImmutableSandboxedEnvironment):
    """A bounded sandbox with HF's settings; `helpers` and `filters` are added to jinja2's own."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, helpers: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        del self.globals["lipsum"]
        for name in _DROPPED:
            del self.filters[name]
        self.globals.update(helpers)
        own = {**self.filters, **filters}
        self.filters.update({name: _guarded(name, function) for name, function in own.items()})
        self.filters.update({_LOOP: _paid, _CONCATENATION: _concatenated, _VALUE: _valued})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Rewriting().visit(tree)
        return tree

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401, N805
        """Call a function, method or macro: one step, and nothing too long comes out."""
        owner = getattr(__obj, "__self__", None)
        if owner is None:  # jinja2 wraps str.format
            owner = getattr(getattr(__obj, "__wrapped__", None), "__self__", None)
        args = _look(getattr(__obj, "__name__", ""), owner, args, kwargs)
        budget: Budget = __context[Budget.KEY]
        return budget.pay_for(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        """Do `left operator right` where the result cannot be huge."""
        if operator == "*":
            _check_product(left, right)
        elif operator == "**":
            _check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        budget: Budget = context[Budget.KEY]
        return budget.pay_for(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:  # noqa: ANN401
        """Whether a template may have `obj.attr`."""
        return attr not in _REFUSED and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: object, attribute: str) -> Undefined:
        """Refuse at once; jinja2 itself prints nothing in the place of such an attribute."""
        raise SecurityError(f"reaches for {attribute!r} of {type(obj).__name__}")


def refuse_longer(count: int) -> None:
    """SecurityError for more characters than any value may have."""
    if count > MAX_TEXT:
        raise SecurityError(f"makes more than {MAX_TEXT:,} characters")


@pass_context
def _valued(context: Context, value: _T) -> _T:
    budget: Budget = context[Budget.KEY]
    return budget.pay_for(value)


@pass_context
def _concatenated(context: Context, parts: Iterable[object]) -> str:
    _extent(parts)
    return _valued(context, "".join(map(str, parts)))


@pass_context
def _paid(context: Context, items: Iterable[Any]) -> Iterable[Any]:
    """What a loop goes over, paid in advance; jinja2 itself complains of what cannot be gone over."""
    if isinstance(items, Undefined) or not isinstance(items, Iterable):
        return items
    listed = list(items)
    context[Budget.KEY].pay(len(listed))
    return listed


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that looks at its arguments first and pays."""
    own = _PassArg.from_obj(function)

    @pass_context
    def guarded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if name == "join":
            value = list(value)
            _check_join(str(kwargs.get("d", args[0] if args else "")), value)
        else:
            args = _look(name, value, args, kwargs)
        _extent((value, args))
        head = {
            None: (),
            _PassArg.context: (context,),
            _PassArg.eval_context: (context.eval_ctx,),
            _PassArg.environment: (context.environment,),
        }[own]
        return _valued(context, function(*head, value, *args, **kwargs))

    return guarded


def _look(name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:  # noqa: ANN401
    """Check what `value.name(*args)` or `value|name(*args)` could make; the arguments, iterators as lists."""
    every = (*args, *kwargs.values())
    if name in _SIZED:
        widths = (
            len(arg) if isinstance(arg, str) else abs(arg) for arg in every if isinstance(arg, int | str)
        )
        refuse_longer(max(widths, default=0) * _pieces(value))
    elif name == "replace":
        text, old = str(value), str(args[0] if args else kwargs.get("old", ""))
        new = str(args[1] if len(args) > 1 else kwargs.get("new", ""))
        refuse_longer(len(text) + text.count(old) * len(new))
    elif isinstance(value, str):
        if name == "join" and args:
            args = (list(args[0]), *args[1:])
            _check_join(value, args[0])
        elif name in ("format", "format_map"):
            _check_format(value, every)
    return args


def _pieces(value: object) -> int:
    """At most so many times a filter of `_SIZED` may fill its width: a line or tab, or a list's part."""
    if isinstance(value, str):
        return 1 + value.count("\n") + value.count("\t")
    return 1 + _extent(value) // _TEXT_PER_ITEM


def _check_join(separator: str, items: Sequence[object]) -> None:
    texts = sum(len(item) for item in items if isinstance(item, str))
    refuse_longer(texts + len(separator) * len(items))


def _check_format(template: str, values: Iterable[object]) -> None:
    if _WIDE.search(template):
        raise SecurityError("formats with a width of its own")
    longest = max((len(v) for v in values if isinstance(v, str)), default=0)
    refuse_longer(len(template) + longest * (template.count("{") + template.count("%")))


def _check_product(left: Any, right: Any) -> None:  # noqa: ANN401
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > _MAX_BITS:
            raise SecurityError("multiplies numbers without end")
        return
    count, other = (left, right) if isinstance(left, int) else (right, left)
    if isinstance(count, int) and isinstance(other, str | list | tuple):
        refuse_longer(len(other) * max(count, 0))


def _check_power(left: Any, right: Any) -> None:  # noqa: ANN401
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > _MAX_BITS:
        raise SecurityError("raises numbers without end")
