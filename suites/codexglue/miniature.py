"""A few rows of every task, as the hub gives them: enough to train a step on, and to score."""

import random

WORDS = ("count", "size", "name", "total", "index", "value", "length", "limit")
TYPES = ("int", "String", "boolean")


def getter(kind, word):
    """A function and its translation."""
    java = f"public {kind} get_{word} ( ) {{ return {word} ; }}"
    return java, f"public {kind} {word.title()} {{ get {{ return this . {word} ; }} }}"


def pairs(count, seed=0):
    """Rows {id, java, cs} of short getters, all of one pattern."""
    drawn = random.Random(seed)
    rows = []
    for k in range(count):
        java, cs = getter(drawn.choice(TYPES), f"{drawn.choice(WORDS)}_{drawn.choice(WORDS)}")
        rows.append({"id": k, "java": java, "cs": cs})
    return rows


def program(label, k):
    """A C program of a problem: the loop of problem 0 adds, that of problem 1 multiplies, that of 2 prints."""
    body = ("total += i ;", "total *= i ;", 'printf ( "%d" , i ) ;')[label]
    return f"int main ( ) {{ int total = {k} ; for ( int i = 0 ; i < {k + 9} ; i ++ ) {{ {body} }} return total ; }}"


def rows_of(name, count=12):
    """Rows of a task as the hub names their fields."""
    translated = pairs(count)
    if name == "defect_detection":
        return [{"id": k, "project": "p", "commit_id": "c", "func": program(k % 2, k), "target": k % 2 == 1}
                for k in range(count)]  # fmt: skip
    if name == "clone_detection_bcb":
        return [{"id": k, "id1": k, "id2": k + 100, "func1": program(0, k), "func2": program(k % 2, k),
                 "label": k % 2 == 0} for k in range(count)]  # fmt: skip
    if name == "clone_detection_poj104":
        return [{"id": k, "label": str(k % 3), "code": program(k % 3, k)} for k in range(count)]
    if name.startswith("cloze"):
        return [{"id": k, "idx": f"x-{k}", "nl_tokens": ["the", ("largest", "smallest")[k % 2], "of", "all"],
                 "pl_tokens": ["return", "<mask>", "(", "values", ")"]} for k in range(count)]  # fmt: skip
    if name == "code_completion_token":
        return [{"id": k, "path": "p", "code": ["<s>", *translated[k]["java"].split(), "<EOL>", "</s>"]}
                for k in range(count)]  # fmt: skip
    if name == "code_completion_line":
        return [{"id": k, "input": "<s> public int get ( ) {", "gt": "return count ;"} for k in range(count)]
    if name == "code_refinement":
        return [{"id": k, "buggy": row["java"], "fixed": row["java"].replace("return", "return this .")}
                for k, row in enumerate(translated)]  # fmt: skip
    if name == "doc_translation":
        return [{"id": k, "source": f"viens divi {k}", "target": f"one two {k}"} for k in range(count)]
    if name == "code_search_adv":
        return [{"id": k, "idx": k, "url": f"u{k}", "docstring_tokens": ["the", WORDS[k % 8]],
                 "code_tokens": row["java"].split()} for k, row in enumerate(translated)]  # fmt: skip
    if name == "code_search_webquery":
        return [{"idx": f"w-{k}", "doc": f"get {WORDS[k % 8]}", "code": row["java"], "label": k % 2}
                for k, row in enumerate(translated)]  # fmt: skip
    if name == "text_to_code":
        return [{"id": k, "nl": f"the {WORDS[k % 8]}", "code": row["java"]} for k, row in enumerate(translated)]
    if name == "code_summarization":
        return [{"id": k, "idx": k, "code_tokens": row["java"].split(), "docstring_tokens": ["the", WORDS[k % 8]]}
                for k, row in enumerate(translated)]  # fmt: skip
    return translated


def answers_of(name, rows):
    """The official answers file of these rows."""
    if name == "defect_detection":
        return [f'{{"idx": {row["id"]}, "target": {int(row["target"])}}}' for row in rows]
    if name == "clone_detection_bcb":
        return [f"{row['id1']}\t{row['id2']}\t{int(row['label'])}" for row in rows]
    if name == "clone_detection_poj104":
        alike = {row["id"]: [f'"{o["id"]}"' for o in rows if o["label"] == row["label"] and o is not row]
                 for row in rows}  # fmt: skip
        return [f'{{"index": "{row["id"]}", "answers": [{", ".join(alike[row["id"]])}]}}' for row in rows]
    if name.startswith("cloze"):
        return [f"{row['idx']}<CODESPLIT>{answer_of(row)}" for row in rows]
    if name == "code_completion_token":
        return [" ".join(row["code"]) for row in rows]
    if name == "code_completion_line":
        return [f'{{"id": {row["id"]}, "input": "{row["input"]}", "gt": "{row["gt"]}"}}' for row in rows]
    if name == "code_search_adv":
        return [f'{{"url": "{row["url"]}", "idx": {row["idx"]}}}' for row in rows]
    if name == "code_search_webquery":
        return [f"{row['idx']}\t{row['label']}" for row in rows]
    if name == "text_to_code":
        return [f'{{"nl": "{row["nl"]}", "code": "{row["code"]}"}}' for row in rows]
    if name == "code_summarization":
        return [f"{row['idx']}\t{' '.join(row['docstring_tokens'])}" for row in rows]
    return [row[{"code_refinement": "fixed", "doc_translation": "target"}.get(name, "cs")] for row in rows]


def answer_of(row):
    """The masked word of a cloze row."""
    return "max" if "largest" in row["nl_tokens"] else "min"
