"""Plans with one instruction changed: what the verifier has to catch."""

from dataclasses import replace

from systems.superscaler.program import Assemble, Collective, Compute, Flat, Free, Recv, Send, Slice, Update


def with_programs(plan, programs):
    return replace(plan, programs=tuple(map(tuple, programs)))


def mutants(plan):
    """(what was changed, the plan so changed) for every instruction that a step needs."""
    for rank, program in enumerate(plan.programs):
        for i, instruction in enumerate(program):
            if isinstance(instruction, Free):
                continue
            for name, new in changed(instruction, plan):
                programs = list(map(list, plan.programs))
                programs[rank][i : i + 1] = new
                yield f"rank {rank}, {i}: {name} {plan.say(instruction)}", with_programs(plan, programs)


def changed(instruction, plan):
    """Wrong versions of an instruction."""
    yield "drop", []
    match instruction:
        case Collective("all_reduce", _, group, sources):
            yield "smaller group", [replace(instruction, group=group[:1])]
            if len(sources) > 1:
                yield "other order", [replace(instruction, sources=sources[::-1])]
        case Collective("all_gather", places=places) | Collective("all_to_all", places=places):
            if len(set(places)) > 1:
                yield "other places", [replace(instruction, places=places[::-1])]
        case Collective("reduce_scatter", places=places):
            yield "other places", [replace(instruction, places=places[::-1])]
            yield "as all_reduce", [replace(instruction, kind="all_reduce", places=())]
        case Flat(kind=kind):
            yield (
                "other kind",
                [replace(instruction, kind="flat_all_gather" if "reduce" in kind else "flat_reduce_scatter")],
            )
        case Send(peer=peer):
            yield "other peer", [replace(instruction, peer=(peer + 1) % plan.devices)]
        case Recv(peer=peer):
            yield "other peer", [replace(instruction, peer=(peer + 1) % plan.devices)]
        case Slice(place=place, flat=flat):
            if flat is not None:
                yield "other shard", [replace(instruction, flat=((flat[0] + 1) % flat[1], flat[1]))]
            elif place is not None:
                moved = tuple(tuple((0, hi - lo) if lo else (lo, hi) for lo, hi in dim) for dim in place)
                if moved != place:
                    yield "other slice", [replace(instruction, place=moved)]
        case Assemble(pieces):
            if pieces:
                yield "one piece less", [replace(instruction, pieces=pieces[:-1])]
                yield "one piece twice", [replace(instruction, pieces=(*pieces, pieces[0]))]
        case Update(pairs):
            if len(pairs) > 1:
                yield "a stale parameter", [replace(instruction, pairs=pairs[1:])]
            yield "twice", [instruction, instruction]
        case Compute("backward"):
            yield "twice", [instruction, instruction]
