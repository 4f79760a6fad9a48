"""A Jinja environment for templates from outside: no way out of it, and bounded time and memory.

jinja2's ImmutableSandboxedEnvironment keeps a template from Python's internals. It does not keep one from
taking all time or memory: nested loops, `'x' * 10**10`, a text that doubles in a loop. Here every loop, call,
filter, test, operator, comparison, slice and literal is sent through a `Budget`, and what could make a large
value from small ones is measured before it runs (`budget`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import length_hint
from typing import Any, TypeVar

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import _PassArg
from jinja2.visitor import NodeTransformer

from meditron.text.budget import Budget, Listed, check_call, check_join, check_operands, is_plain

__all__ = ["Environment"]

_T = TypeVar("_T")
# Attributes that lead to bytes, which nothing here counts, put a text in the place of each character, or take
# time in the square of a text's length.
_REFUSED = frozenset({"encode", "striptags", "to_bytes", "translate"})
# Filters of the same kinds, or that write a text of their argument for each word. No known template has one.
_DROPPED = ("pprint", "striptags", "urlize", "wordwrap")
# Filters that give a part of their operands, and look at no more.
_PICKING = frozenset({"attr", "count", "d", "default", "first", "last", "length"})
# Filters through which the parsed template is sent; no template can write these names.
_LOOP, _CONCATENATION, _VALUE, _OUTPUT, _OPERAND = "{% for %}", "~", "{% set %}", "{{ }}", "=="


class _Generation(Extension):
    """HF's `{% generation %}` block, which marks what the assistant said: its content, as it is."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own form

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Rewriting(NodeTransformer):
    """Sends through filters what jinja2 does without asking."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  # jinja2's own form
        if node.recursive:
            raise SecurityError("has a recursive loop")
        self.generic_visit(node)
        node.iter = _through(_LOOP, node.iter)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        """Each piece is paid as it is written: blocks and macros join theirs before anyone sees the whole."""
        self.generic_visit(node)
        node.nodes = [_through(_OUTPUT, each) for each in node.nodes]
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.filter = _through(_VALUE, node.filter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        parts = [self.visit(part) for part in node.nodes]
        return _through(_CONCATENATION, nodes.List(parts, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        """A comparison looks at no more than its right operand; a text of the template's own is short."""
        self.generic_visit(node)
        for operand in node.ops:
            if not isinstance(operand.expr, nodes.Const):
                operand.expr = _through(_OPERAND, operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through(_VALUE, node) if isinstance(node.arg, nodes.Slice) else node

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

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self, helpers: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        del self.globals["lipsum"]
        for name in _DROPPED:
            del self.filters[name]
        self.globals.update(helpers)
        own = {**self.filters, **filters}
        self.filters.update({name: _guarded(name, function) for name, function in own.items()})
        self.filters.update({_LOOP: _paid, _CONCATENATION: _concatenated, _VALUE: _valued})
        self.filters.update({_OUTPUT: _printed, _OPERAND: _read})
        tests: Mapping[str, Any] = self.tests
        self.tests.update({name: _guarded_test(function) for name, function in tests.items()})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Rewriting().visit(tree)
        return tree

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401, N805
        """Call a function, method or macro: a step and the size of its result, which is bounded before."""
        budget: Budget = __context.parent[Budget.KEY]
        owner = getattr(__obj, "__self__", None)
        if owner is None:  # jinja2 wraps str.format
            owner = getattr(getattr(__obj, "__wrapped__", None), "__self__", None)
        name = getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            budget.pay_for_reading(owner)
            if name == "join" and args:
                args = (Listed(args[0]), *args[1:])
                check_join(owner, args[0])
        elif isinstance(owner, list | tuple):
            budget.pay_for_reading(owner)
        check_call(name, owner, args, kwargs)
        return budget.pay_for(_listed(super().call(__context, __obj, *args, **kwargs)))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        """Do `left operator right` if the result cannot be huge."""
        check_operands(operator, left, right)
        budget: Budget = context.parent[Budget.KEY]
        return budget.pay_for(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:  # noqa: ANN401
        """Whether a template may have `obj.attr`."""
        return attr not in _REFUSED and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: object, attribute: str) -> Undefined:
        """Refuse at once; jinja2 itself prints nothing in the place of such an attribute."""
        raise SecurityError(f"reaches for {attribute!r} of {type(obj).__name__}")


def _listed(value: Any) -> Any:  # noqa: ANN401
    """A generator's items at once: what is lazy cannot be measured."""
    lazy = isinstance(value, Iterator) and not isinstance(value, Listed | LoopContext)
    return Listed(value) if lazy else value


@pass_context
def _valued(context: Context, value: _T) -> _T:
    budget: Budget = context.parent[Budget.KEY]
    return budget.pay_for(value)


@pass_context
def _printed(context: Context, value: Any) -> Any:  # noqa: ANN401
    """A value as it is written: containers are printed here, so that the text is paid for."""
    budget: Budget = context.parent[Budget.KEY]
    if type(value) is str:
        return budget.pay_for(value)
    return budget.pay_for(value if is_plain(value) else str(budget.pay_for(value)))


@pass_context
def _read(context: Context, value: _T) -> _T:
    """The right operand of a comparison or of `in`."""
    budget: Budget = context.parent[Budget.KEY]
    budget.pay_for_reading(value)
    return value


@pass_context
def _concatenated(context: Context, parts: Iterable[object]) -> str:
    budget: Budget = context.parent[Budget.KEY]
    budget.measure(parts)
    return budget.pay_for("".join(map(str, parts)))


@pass_context
def _paid(context: Context, items: Any) -> Any:  # noqa: ANN401
    """What a loop goes over, paid in advance; jinja2 itself complains of what cannot be gone over."""
    budget: Budget = context.parent[Budget.KEY]
    items = _listed(items)
    if not isinstance(items, Undefined) and isinstance(items, Iterable):
        budget.pay(length_hint(items))
    return items


def _head(function: Callable[..., Any]) -> Callable[[Context], tuple[Any, ...]]:
    """Return the arguments that jinja2 passes to a filter or test before its value."""
    own = _PassArg.from_obj(function)
    if own is _PassArg.context:
        return lambda context: (context,)
    if own is _PassArg.eval_context:
        return lambda context: (context.eval_ctx,)
    if own is _PassArg.environment:
        return lambda context: (context.environment,)
    return lambda context: ()


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that measures its operands first and pays for its result."""
    head = _head(function)

    @pass_context
    def guarded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        budget: Budget = context.parent[Budget.KEY]
        if name in _PICKING:
            budget.pay(1)
            return function(*head(context), value, *args, **kwargs)
        value = _listed(value)
        budget.measure((value, args, tuple(kwargs.values())))
        if name == "join":
            check_join(str(kwargs.get("d", args[0] if args else "")), value)
        check_call("%" if name == "format" else name, value, args, kwargs)
        return budget.pay_for(_listed(function(*head(context), value, *args, **kwargs)))

    return guarded


def _guarded_test(function: Callable[..., Any]) -> Callable[..., Any]:
    """A test that pays for what it may compare."""
    head = _head(function)

    @pass_context
    def guarded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        budget: Budget = context.parent[Budget.KEY]
        budget.pay(1)
        for arg in args:
            budget.pay_for_reading(arg)
        return function(*head(context), value, *args, **kwargs)

    return guarded
