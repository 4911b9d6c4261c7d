"""The syntax tree of a chat template → the same tree with its work charged, or a refusal by name."""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

MADE, READ, EACH, CUT, JOINED, STEPS = "(made)", "(read)", "(each)", "(cut)", "(joined)", "(steps)"
"""Filters put in here. A template cannot spell these names, and gains nothing if `map` calls one."""

_ALLOWED = (
    "Add And Assign AssignBlock Break Call CallBlock Compare Concat CondExpr Const Continue Dict Div "
    "Filter FilterBlock FloorDiv For Getattr Getitem If Keyword List Macro Mod Mul NSRef Name Neg Not "
    "Operand Or Output Pair Pos Pow Scope Slice Sub Template TemplateData Test Tuple With"
)
_ALLOWED_NAMES = frozenset(_ALLOWED.split())
_BODIES = ("body", "else_")
_FREE_NODES = 64
"""A body of fewer nodes is charged with the one around it."""
_NODES_A_STEP = 4  # as a shift


def meter(template: nodes.Template) -> nodes.Template:
    """
    Change a parsed template so that what it runs is charged to the current Budget.

    Loops, literals, slices, `~` and comparisons get a filter that counts them; every body that is
    long enough to matter gets a statement that charges its length.

    Raises:
        SecurityError: A statement that chat templates have no use for, such as `include`.
    """
    _Metering().visit(template)
    _weigh(template)
    return template


class _Metering(NodeTransformer):
    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        name = type(node).__name__
        if name not in _ALLOWED_NAMES:
            raise SecurityError(f"the statement {name} is not allowed in a chat template")
        return super().visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - the names that jinja2 calls
        self.generic_visit(node)
        # _weigh fills in what one turn costs.
        node.iter = _filter(EACH, node.iter, nodes.Const(1))
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(MADE, node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(MADE, node) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        for pair in node.items:
            # A tuple of tuples is hashed anew each time, all the way down.
            pair.key = _read(pair.key)
        return _filter(MADE, node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(JOINED, nodes.Tuple(node.nodes, "load", lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        cut = node.arg
        self.generic_visit(node)
        if not isinstance(cut, nodes.Slice):
            return node
        none = nodes.Const(None, lineno=node.lineno)
        return _filter(CUT, node.node, cut.start or none, cut.stop or none, cut.step or none)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        if _is_cheap(node):
            node.expr, right = self._operand(node.expr), node.ops[0]
            right.expr = self._operand(right.expr)
            return node
        self.generic_visit(node)
        node.expr = _read(node.expr)
        for operand in node.ops:
            operand.expr = _read(operand.expr)
        return node

    def _operand(self, node: nodes.Expr) -> nodes.Expr:
        """Literals of a cheap comparison stay as they are."""
        return node if _is_constant(node) else self.visit(node)


def _is_constant(node: nodes.Node) -> bool:
    if isinstance(node, (nodes.List, nodes.Tuple)):
        return all(isinstance(item, nodes.Const) for item in node.items)
    return isinstance(node, nodes.Const)


def _is_cheap(node: nodes.Compare) -> bool:
    """Tell whether one side is written in the source, so that the cost is bounded by its length."""
    if len(node.ops) != 1:
        return False
    right = node.ops[0]
    if right.op in ("in", "notin"):
        return _is_constant(right.expr)
    return right.op in ("eq", "ne") and (
        isinstance(node.expr, nodes.Const) or isinstance(right.expr, nodes.Const)
    )


def _filter(name: str, value: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(args), [], None, None, lineno=value.lineno)


def _read(value: nodes.Expr) -> nodes.Expr:
    return value if isinstance(value, nodes.Const) else _filter(READ, value)


def _weigh(node: nodes.Node) -> int:
    """Return how many nodes run when this one runs once; bodies that charge themselves count nothing."""
    n_nodes = 1
    n_turn = 0  # nodes of one turn of this loop
    for name, value in node.iter_fields():
        parts = value if isinstance(value, list) else [value]
        inner = sum(_weigh(part) for part in parts if isinstance(part, nodes.Node))
        if name in _BODIES and inner > _FREE_NODES:
            value.insert(0, _charge(inner, node.lineno))
        elif isinstance(node, nodes.For) and name in ("body", "test"):
            n_turn += inner
        else:
            n_nodes += inner
    if isinstance(node, nodes.For):
        node.iter.args[0].value += n_turn >> _NODES_A_STEP  # type: ignore[attr-defined]
    return n_nodes


def _charge(n_nodes: int, lineno: int) -> nodes.Node:
    steps = nodes.Const(n_nodes >> _NODES_A_STEP, lineno=lineno)
    return nodes.ExprStmt(_filter(STEPS, steps), lineno=lineno)
