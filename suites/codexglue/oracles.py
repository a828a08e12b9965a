"""What the fast paths are compared with: the definitions written down plainly, and the official chain of rules."""

import math
import re
from collections import Counter
from xml.sax.saxutils import unescape


def grams(tokens, order):
    return Counter(tuple(tokens[k : k + order]) for k in range(len(tokens) - order + 1))


def bleu(references, hypotheses):
    """Corpus BLEU-4 with one added to both counts of every order."""
    found, total, hyp, ref = [0] * 4, [0] * 4, 0, 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        hyp, ref = hyp + len(hypothesis), ref + len(reference)
        for order in range(4):
            ours, theirs = grams(hypothesis, order + 1), grams(reference, order + 1)
            found[order] += sum((ours & theirs).values())
            total[order] += max(len(hypothesis) - order, 0)
    mean = math.exp(sum(0.25 * math.log((m + 1.0) / (g + 1.0)) for m, g in zip(found, total, strict=True)))
    if not ref:
        return mean
    if not hyp:
        return 0.0
    ratio = hyp / ref
    return mean * (1.0 if ratio > 1.0 else math.exp(1 - 1.0 / ratio))


def summary_tokens(text):
    """The official chain, rule by rule."""
    text = " ".join(re.findall(r"[\w]+|[^\s\w]", text.strip().lower()))
    text = re.sub("<skipped>", "", text)
    text = re.sub(r"-\n", "", text)
    text = re.sub(r"\n", " ", text)
    text = unescape(text, {"&quot;": '"'}).lower()
    text = re.sub(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])", r" \1 ", text)
    text = re.sub(r"([^0-9])([\.,])", r"\1 \2 ", text)
    text = re.sub(r"([\.,])([^0-9])", r" \1 \2", text)
    text = re.sub(r"([0-9])(-)", r"\1 \2 ", text)
    return text.split()


def average_precision(relevant, ranked):
    hits = [k for k, item in enumerate(ranked, 1) if item in relevant]
    return sum(n / k for n, k in enumerate(hits, 1)) / len(relevant)


def subtrees(root):
    """S-expressions of the root and of every node that has children."""
    found, stack = [], [root]
    while stack:
        node = stack.pop()
        found.append(str(node))
        stack += [child for child in node.children if child.children]
    return found
