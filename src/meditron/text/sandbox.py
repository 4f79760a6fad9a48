"""A Jinja environment for untrusted templates: no access to Python, and bounded time and memory.

jinja2's ImmutableSandboxedEnvironment denies a template access to Python's internals, but does not limit time
and memory: a template may nest loops, compute `'x' * 10**10`, or double a text in a loop. In this environment
every loop, call, filter, test, operator, comparison, slice and literal is charged to a `Budget`, and an
operation that could compute a large value from small ones is checked before it runs (`text.budget`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import length_hint
from types import MappingProxyType
from typing import Any, TypeVar

from jinja2 import Template, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import _PassArg
from jinja2.visitor import NodeTransformer

from meditron.text.budget import (
    Budget,
    MeasuredItems,
    check_call,
    check_join,
    check_operands,
    prints_within_measure,
)

__all__ = ["TEMPLATE_FAULTS", "Environment", "render_within_budget"]

_T = TypeVar("_T")
TEMPLATE_FAULTS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,  # jinja2 compiles to Python, which refuses more than twenty nested loops
    TypeError,
    ValueError,
)
"""Exceptions of jinja2 and of Python that a template can cause when it is compiled or rendered."""
# Methods that a template may not call: they return bytes (whose size is not measured), replace each character
# by a text, or take time that grows with the square of a text's length.
_REFUSED = frozenset({"encode", "striptags", "to_bytes", "translate"})
# Filters that a template may not use: `pprint` and `striptags` for the reasons above; `urlize` and `wordwrap`
# insert a given text at each link or line end, so the output can be far longer than the input. No known
# template uses them.
_DROPPED = ("pprint", "striptags", "urlize", "wordwrap")
# Filters that only pick a part of their operand or count its items, and so cost one step whatever its size.
_PICKING = frozenset({"attr", "count", "d", "default", "first", "last", "length"})
# Names of the filters that `_ChargeInserter` inserts into a parsed template. Such names are not valid in
# Jinja, so a template cannot call these filters itself.
_LOOP, _CONCATENATION, _VALUE, _OUTPUT, _OPERAND = "{% for %}", "~", "{% set %}", "{{ }}", "=="


class _GenerationBlock(Extension):
    """HF's block `{% generation %}`, which marks the assistant's text; it is rendered as its content."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own form

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _ChargeInserter(NodeTransformer):
    """Transformer that applies filters, which charge the budget, to operations without a hook in jinja2."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  # jinja2's own form
        if node.recursive:
            raise SecurityError("has a recursive loop")
        self.generic_visit(node)
        node.iter = _apply_filter(_LOOP, node.iter)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        """Charge each piece of output; jinja2 has no hook where blocks and macros join their pieces."""
        self.generic_visit(node)
        node.nodes = [_apply_filter(_OUTPUT, piece) for piece in node.nodes]
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.filter = _apply_filter(_VALUE, node.filter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        parts = [self.visit(part) for part in node.nodes]
        return _apply_filter(_CONCATENATION, nodes.List(parts, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        """Charge the right operand of each comparison, unless it is a literal.

        A comparison reads at most as much of the left operand as of the right one.
        """
        self.generic_visit(node)
        for operand in node.ops:
            if not isinstance(operand.expr, nodes.Const):
                operand.expr = _apply_filter(_OPERAND, operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _apply_filter(_VALUE, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return _apply_filter(_VALUE, self.generic_visit(node))

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return _apply_filter(_VALUE, self.generic_visit(node))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _apply_filter(_VALUE, node) if node.ctx == "load" else node


def _apply_filter(name: str, node: Any) -> nodes.Filter:  # noqa: ANN401  # an expression, or None for a block
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno if node else 1)


class Environment(ImmutableSandboxedEnvironment):
    """Sandbox with a budget.

    Args:
        helpers: Variables that are added to jinja2's own.
        filters: Filters that are added to jinja2's own.
        settings: Settings of jinja2; default: those of HF's chat templates.
    """

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(
        self,
        helpers: Mapping[str, Any] = MappingProxyType({}),
        filters: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
        settings: Mapping[str, Any] = MappingProxyType({"trim_blocks": True, "lstrip_blocks": True}),
    ) -> None:
        super().__init__(extensions=[_GenerationBlock, loopcontrols], **settings)
        del self.globals["lipsum"]
        for name in _DROPPED:
            del self.filters[name]
        self.globals.update(helpers)
        all_filters = {**self.filters, **filters}
        self.filters.update({name: _charged_filter(name, function) for name, function in all_filters.items()})
        self.filters.update({_LOOP: _charge_loop, _CONCATENATION: _concatenate, _VALUE: _charge_value})
        self.filters.update({_OUTPUT: _charge_output, _OPERAND: _charge_operand})
        jinja_tests: Mapping[str, Any] = self.tests
        self.tests.update({name: _charged_test(function) for name, function in jinja_tests.items()})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _ChargeInserter().visit(tree)
        return tree

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401, N805
        """Call a function, method or macro; bound its result's size before and charge it after."""
        budget: Budget = __context.parent[Budget.KEY]
        owner = getattr(__obj, "__self__", None)
        if owner is None:  # jinja2 wraps str.format in a function of its own
            owner = getattr(getattr(__obj, "__wrapped__", None), "__self__", None)
        name = getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            budget.charge_reading(owner)
            if name == "join" and args:
                args = (MeasuredItems(args[0]), *args[1:])
                check_join(owner, args[0])
        elif isinstance(owner, list | tuple):
            budget.charge_reading(owner)
        check_call(name, owner, args, kwargs)
        return budget.charge_value(_with_measured_items(super().call(__context, __obj, *args, **kwargs)))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        """Compute `left operator right`; raise SecurityError if the result could be huge."""
        check_operands(operator, left, right)
        budget: Budget = context.parent[Budget.KEY]
        return budget.charge_value(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:  # noqa: ANN401
        """Return whether a template may access `obj.attr`."""
        return attr not in _REFUSED and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: object, attribute: str) -> Undefined:
        """Raise SecurityError for a forbidden attribute, which jinja2 itself would render as nothing."""
        raise SecurityError(f"accesses {attribute!r} of {type(obj).__name__}")


def render_within_budget(template: Template, variables: Mapping[str, Any]) -> str:
    """Render a template of an `Environment` with a budget of its own.

    Raises:
        TEMPLATE_FAULTS: an expression of the template fails, or the budget is exceeded (`SecurityError`).
    """
    budget = Budget()
    pieces: list[str] = []
    for piece in template.generate({**variables, Budget.KEY: budget}):
        pieces.append(piece)
        budget.charge_output(piece)
    return "".join(pieces)


def _with_measured_items(value: Any) -> Any:  # noqa: ANN401
    """Return a generator as `MeasuredItems`, because a lazy value cannot be measured; else the value."""
    lazy = isinstance(value, Iterator) and not isinstance(value, MeasuredItems | LoopContext)
    return MeasuredItems(value) if lazy else value


@pass_context
def _charge_value(context: Context, value: _T) -> _T:
    budget: Budget = context.parent[Budget.KEY]
    return budget.charge_value(value)


@pass_context
def _charge_output(context: Context, value: Any) -> Any:  # noqa: ANN401
    """Charge a printed value; a container is converted to text first, so that its text is charged too."""
    budget: Budget = context.parent[Budget.KEY]
    if type(value) is str:
        return budget.charge_value(value)
    return budget.charge_value(value if prints_within_measure(value) else str(budget.charge_value(value)))


@pass_context
def _charge_operand(context: Context, value: _T) -> _T:
    """Charge the right operand of a comparison or of `in`."""
    budget: Budget = context.parent[Budget.KEY]
    budget.charge_reading(value)
    return value


@pass_context
def _concatenate(context: Context, parts: Iterable[object]) -> str:
    budget: Budget = context.parent[Budget.KEY]
    budget.measure_and_charge(parts)
    return budget.charge_value("".join(map(str, parts)))


@pass_context
def _charge_loop(context: Context, items: Any) -> Any:  # noqa: ANN401
    """Charge all iterations of a loop before it runs; jinja2 itself refuses values that are not iterable."""
    budget: Budget = context.parent[Budget.KEY]
    items = _with_measured_items(items)
    if not isinstance(items, Undefined) and isinstance(items, Iterable):
        budget.charge_steps(length_hint(items))
    return items


def _context_arguments(function: Callable[..., Any]) -> Callable[[Context], tuple[Any, ...]]:
    """Return a function that gives the arguments that jinja2 passes to a filter before the filtered value."""
    kind = _PassArg.from_obj(function)
    if kind is _PassArg.context:
        return lambda context: (context,)
    if kind is _PassArg.eval_context:
        return lambda context: (context.eval_ctx,)
    if kind is _PassArg.environment:
        return lambda context: (context.environment,)
    return lambda context: ()


def _charged_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that charges its operands before it calls `function`, and the result afterwards."""
    leading = _context_arguments(function)

    @pass_context
    def charged_function(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        budget: Budget = context.parent[Budget.KEY]
        if name in _PICKING:
            budget.charge_steps(1)
            return function(*leading(context), value, *args, **kwargs)
        value = _with_measured_items(value)
        budget.measure_and_charge((value, args, tuple(kwargs.values())))
        if name == "join":
            check_join(str(kwargs.get("d", args[0] if args else "")), value)
        check_call("%" if name == "format" else name, value, args, kwargs)
        return budget.charge_value(_with_measured_items(function(*leading(context), value, *args, **kwargs)))

    return charged_function


def _charged_test(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a Jinja test that charges its arguments, which it may compare, before it calls `function`."""
    leading = _context_arguments(function)

    @pass_context
    def charged_function(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        budget: Budget = context.parent[Budget.KEY]
        budget.charge_steps(1)
        for arg in args:
            budget.charge_reading(arg)
        return function(*leading(context), value, *args, **kwargs)

    return charged_function
