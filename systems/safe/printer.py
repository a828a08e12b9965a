"""Tree to text: `parse(show_program(tree)) == tree`. Operands that are not atoms stand in parentheses."""

from __future__ import annotations

from collections.abc import Iterable

from systems.safe import syntax as s
from systems.safe.syntax import Expr

_ATOMS = (s.Path, s.Call, s.Method, s.Field, s.Index, s.View, s.Tuple, s.MacroCall, s.ListLiteral)
_BLOCKS = (s.If, s.Match, s.Block, s.While, s.For, s.ProofBlock)
_TAB = "    "


def show_program(program: s.Program) -> str:
    """The program as a file: its items inside one `verus! { }`."""
    inner = [f"#![{text}]" for text in program.attributes]
    items = [show_item(item) for item in program.items]
    return "verus! {\n\n" + "\n\n".join([*inner, *items]) + "\n\n} // verus!\n"


def show_item(item: s.Item) -> str:
    """One item. Items outside the subset print as what they are called, in a comment."""
    match item:
        case s.Fn():
            return _function(item)
        case s.Const():
            mode = "" if item.mode == "exec" else f"{item.mode} "
            return f"{mode}const {item.name}: {show_type(item.type)} = {show_expr(item.value)};"
        case s.Datatype():
            return _datatype(item)
        case s.Impl():
            inner = "\n\n".join(map(show_item, item.functions))
            return f"impl{_generics(item.generics)} {show_type(item.type)} {{\n{_indent(inner)}\n}}"
        case s.Use():
            return item.text
        case s.OtherItem():
            return f"// {item.what}"


def _generics(names: Iterable[str]) -> str:
    inside = ", ".join(names)
    return f"<{inside}>" if inside else ""


def _indent(text: str) -> str:
    return "\n".join(_TAB + line if line else line for line in text.split("\n"))


def _attributes(texts: Iterable[str]) -> str:
    return "".join(f"#[{text}]\n" for text in texts)


def _clauses(word: str, clauses: tuple[Expr, ...]) -> str:
    if not clauses:
        return ""
    return f"\n{_TAB}{word}" + "".join(f"\n{_TAB * 2}{_hang(show_expr(clause), 2)}," for clause in clauses)


def _hang(text: str, depth: int) -> str:
    return text.replace("\n", "\n" + _TAB * depth)


def _function(fn: s.Fn) -> str:
    words = [*fn.qualifiers, *([] if fn.mode == "exec" else [fn.mode]), "fn"]
    result = ""
    if fn.result[1] is not None:
        shown = show_type(fn.result[1])
        result = f" -> ({fn.result[0]}: {shown})" if fn.result[0] else f" -> {shown}"
    head = f"{' '.join(words)} {fn.name}{_generics(fn.generics)}({', '.join(map(_param, fn.params))}){result}"
    clauses = "".join(
        (
            _clauses("requires", fn.requires),
            _clauses("recommends", fn.recommends),
            _clauses("ensures", fn.ensures),
            _clauses("decreases", fn.decreases),
            f"\n{_TAB}when {show_expr(fn.when)}" if fn.when is not None else "",
        )
    )
    body = ";" if fn.body is None else ("\n" if clauses else " ") + show_block(fn.body)
    return _attributes(fn.attributes) + head + clauses + body


def _param(param: s.Param) -> str:
    if param.name == "self" and param.type is not None:
        if isinstance(param.type, s.RefType):
            return "&mut self" if param.type.mutable else "&self"
        return ("mut " if param.mutable else "") + "self"
    mutable = "mut " if param.mutable else ""
    shown = f": {show_type(param.type)}" if param.type is not None else ""
    if param.mode and param.type is not None:
        wrapper = param.mode.capitalize()
        return f"{wrapper}({mutable}{param.name}): {wrapper}<{show_type(param.type)}>"
    return f"{mutable}{param.name}{shown}"


def _datatype(item: s.Datatype) -> str:
    head = f"{_attributes(item.attributes)}{'enum' if item.is_enum else 'struct'} {item.name}{_generics(item.generics)}"
    if item.is_enum:
        inner = "".join(f"\n{_TAB}{variant.name}{_fields(variant)}," for variant in item.variants)
        return f"{head} {{{inner}\n}}"
    variant = item.variants[0]
    return head + _fields(variant) + (";" if variant.positional else "")


def _fields(variant: s.Variant) -> str:
    if variant.positional:
        return f"({', '.join(show_type(type_) for _, type_ in variant.fields)})" if variant.fields else ""
    return " { " + ", ".join(f"{name}: {show_type(type_)}" for name, type_ in variant.fields) + " }"


def show_type(type_: s.TypeExpr) -> str:
    """A type as written."""
    match type_:
        case s.RefType():
            return f"&{'mut ' if type_.mutable else ''}{show_type(type_.inner)}"
        case s.FnType():
            return f"spec_fn({', '.join(map(show_type, type_.params))}) -> {show_type(type_.result)}"
        case s.NamedType(name="tuple"):
            inner = ", ".join(map(show_type, type_.args))
            return f"({inner},)" if len(type_.args) == 1 else f"({inner})"
        case s.NamedType(name="slice"):
            return f"[{show_type(type_.args[0])}]"
        case s.NamedType(name="array"):
            return f"[{show_type(type_.args[0])}; 0]"
    return type_.name + _generics(map(show_type, type_.args))


def show_pattern(pattern: s.Pattern) -> str:
    """A pattern."""
    match pattern:
        case s.Bind():
            return f"mut {pattern.name}" if pattern.mutable else pattern.name
        case s.TuplePattern():
            return f"({', '.join(map(show_pattern, pattern.items))})"
        case s.LiteralPattern():
            return show_expr(pattern.value)
    path = "::".join(pattern.path)
    if pattern.fields is not None:
        pairs = zip(pattern.fields, pattern.items, strict=True)
        return path + " { " + ", ".join(f"{name}: {show_pattern(item)}" for name, item in pairs) + " }"
    return f"{path}({', '.join(map(show_pattern, pattern.items))})" if pattern.items else path


def show_block(block: s.Block) -> str:
    """A block over several lines."""
    lines = [show_statement(statement) for statement in block.statements]
    if block.tail is not None:
        lines.append(show_expr(block.tail))
    return "{\n" + "".join(_indent(line) + "\n" for line in lines) + "}"


def show_statement(statement: s.Statement) -> str:
    """A statement with its semicolon, where it has one."""
    match statement:
        case s.ItemStatement():
            return show_item(statement.item)
        case s.Let():
            ghost = f"{statement.ghost} " if statement.ghost else ""
            type_ = f": {show_type(statement.type)}" if statement.type is not None else ""
            value = f" = {show_expr(statement.value)}" if statement.value is not None else ""
            orelse = f" else {show_block(statement.orelse)}" if statement.orelse is not None else ""
            return f"let {ghost}{show_pattern(statement.pattern)}{type_}{value}{orelse};"
    expr = statement.expr
    if isinstance(expr, s.Block) and expr.tail is None and len(expr.statements) == 1:
        only = expr.statements[0]
        if isinstance(only, s.Do) and isinstance(only.expr, _BLOCKS) and only.span == expr.span:
            return show_expr(only.expr) + ";"
    return show_expr(expr) if isinstance(expr, _BLOCKS) else show_expr(expr) + ";"


def _operand(expr: Expr) -> str:
    shown = show_expr(expr)
    return shown if isinstance(expr, (*_ATOMS, s.Lit)) else f"({shown})"


def _args(args: Iterable[Expr]) -> str:
    return ", ".join(map(show_expr, args))


def _bound(params: Iterable[s.Param]) -> str:
    return f"|{', '.join(map(_param, params))}|"


def _triggers(groups: Iterable[tuple[Expr, ...]], auto: bool) -> str:
    return "".join(f" #![trigger {_args(group)}]" for group in groups) + (" #![auto]" if auto else "")


def _character(value: int) -> str:
    shown = chr(value)
    return f"'{shown}'" if shown.isprintable() and shown not in "'\\" else f"'\\u{{{value:x}}}'"


def show_expr(expr: Expr) -> str:
    """An expression."""
    match expr:
        case s.Lit(kind="bool"):
            return "true" if expr.value else "false"
        case s.Lit(kind="char"):
            return _character(int(expr.value))
        case s.Lit():
            return f"{expr.value}{expr.suffix}"
        case s.Path():
            names = list(expr.names)
            if expr.at >= 0:
                names.insert(expr.at + 1, f"<{', '.join(map(show_type, expr.generics))}>")
            return "::".join(names)
        case s.Unary():
            return f"{'&mut ' if expr.op == '&mut' else expr.op}{_operand(expr.operand)}"
        case s.Binary():
            return f"{_operand(expr.left)} {expr.op} {_operand(expr.right)}"
        case s.Chain():
            pairs = zip(expr.ops, expr.operands[1:], strict=True)
            return _operand(expr.operands[0]) + "".join(f" {op} {_operand(operand)}" for op, operand in pairs)
        case s.Cast():
            return f"{_operand(expr.operand)} as {show_type(expr.type)}"
        case s.Call():
            return f"{_operand(expr.function)}({_args(expr.args)})"
        case s.Method():
            generics = f"::{_generics(map(show_type, expr.generics))}" if expr.generics else ""
            return f"{_operand(expr.receiver)}.{expr.name}{generics}({_args(expr.args)})"
        case s.Field():
            return f"{_operand(expr.receiver)}.{expr.name}"
        case s.Index():
            return f"{_operand(expr.receiver)}[{show_expr(expr.index)}]"
        case s.View():
            return f"{_operand(expr.operand)}@"
        case s.Try():
            return f"{_operand(expr.operand)}?"
        case s.Is():
            return f"{_operand(expr.operand)} {'matches' if expr.binds else 'is'} {show_pattern(expr.pattern)}"
        case s.Trigger():
            return f"#[trigger] {_operand(expr.operand)}"
        case s.Range():
            low = _operand(expr.low) if expr.low is not None else ""
            high = _operand(expr.high) if expr.high is not None else ""
            return f"{low}{'..=' if expr.inclusive else '..'}{high}"
        case s.Tuple():
            return f"({show_expr(expr.items[0])},)" if len(expr.items) == 1 else f"({_args(expr.items)})"
        case s.ListLiteral():
            inside = _args(expr.items) + (f"; {show_expr(expr.repeat)}" if expr.repeat is not None else "")
            return f"[{inside}]" if expr.kind == "array" else f"{expr.kind}![{inside}]"
        case s.StructLiteral():
            fields = [f"{name}: {show_expr(value)}" for name, value in expr.fields]
            base = [f"..{show_expr(expr.base)}"] if expr.base is not None else []
            return f"{'::'.join(expr.path)} {{ {', '.join(fields + base)} }}"
        case s.MacroCall():
            return f"{expr.name}!()"
        case s.Quantifier():
            head = f"{expr.kind}{_bound(expr.params)}{_triggers(expr.triggers, expr.auto)}"
            return f"{head} {_operand(expr.body)}"
        case s.Closure():
            return f"{_bound(expr.params) if expr.params else '||'} {_operand(expr.body)}"
    return _show_code(expr)


def _arm_head(arm: s.Arm) -> str:
    guard = f" if {show_expr(arm.guard)}" if arm.guard is not None else ""
    return show_pattern(arm.pattern) + guard


def _condition(expr: Expr) -> str:
    if isinstance(expr, s.LetCondition):
        return f"let {show_pattern(expr.pattern)} = {_operand(expr.value)}"
    return f"({show_expr(expr)})" if isinstance(expr, s.StructLiteral | s.Block) else show_expr(expr)


def _loop_spec(spec: s.LoopSpec) -> str:
    found = "".join(
        (
            _clauses("invariant_except_break", spec.invariant_except_break),
            _clauses("invariant", spec.invariant),
            _clauses("ensures", spec.ensures),
            _clauses("decreases", spec.decreases),
        )
    )
    return found + "\n" if found else " "


def _show_code(expr: Expr) -> str:
    match expr:
        case s.Block():
            return show_block(expr)
        case s.If():
            orelse = f" else {show_expr(expr.orelse)}" if expr.orelse is not None else ""
            return f"if {_condition(expr.condition)} {show_block(expr.then)}{orelse}"
        case s.LetCondition():
            return _condition(expr)
        case s.Match():
            arms = "".join(f"\n{_TAB}{_arm_head(arm)} => {_hang(show_expr(arm.body), 1)}," for arm in expr.arms)
            return f"match {_condition(expr.subject)} {{{arms}\n}}"
        case s.While():
            head = f"while {_condition(expr.condition)}" if expr.condition is not None else "loop"
            label = f"{expr.label}: " if expr.label else ""
            return f"{_attributes(expr.attributes)}{label}{head}{_loop_spec(expr.spec)}{show_block(expr.body)}"
        case s.For():
            label = f"{expr.label}: " if expr.label else ""
            head = f"for {expr.name} in {show_expr(expr.iterator)}"
            return f"{_attributes(expr.attributes)}{label}{head}{_loop_spec(expr.spec)}{show_block(expr.body)}"
        case s.Assign():
            return f"{show_expr(expr.target)} {expr.op} {show_expr(expr.value)}"
        case s.Return():
            return f"return {show_expr(expr.value)}" if expr.value is not None else "return"
        case s.Break():
            return f"break {expr.label}".strip()
        case s.Continue():
            return f"continue {expr.label}".strip()
        case s.Assume():
            return f"assume({show_expr(expr.condition)})" if expr.condition is not None else "admit()"
        case s.Reveal():
            path = "::".join(expr.path)
            if expr.fuel == 0:
                return f"hide({path})"
            return f"reveal({path})" if expr.fuel == 1 else f"reveal_with_fuel({path}, {expr.fuel})"
        case s.ProofBlock():
            return f"proof {show_block(expr.body)}"
        case s.Assert():
            by = f" by({expr.by})" if expr.by not in ("", "block") else " by" if expr.by else ""
            requires = _clauses("requires", expr.requires)
            body = f" {show_block(expr.body)}" if expr.body is not None else ""
            return f"assert({show_expr(expr.condition)}){by}{requires}{body}"
        case s.AssertForall():
            head = f"assert forall{_bound(expr.params)}{_triggers(expr.triggers, expr.auto)}"
            claim = _operand(expr.conclusion)
            if expr.premise is not None:
                claim = f"{_operand(expr.premise)} implies {claim}"
            return f"{head} {claim} by {show_block(expr.body)}"
    raise TypeError(f"no text for {type(expr).__name__}")
