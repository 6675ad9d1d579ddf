"""Streams run on between prompts: a machine that decodes takes prompts in little by little.

The default has prompts go first, as they come. Where several come at once to a machine that runs
both phases, its streams stand still, or nearly, for one long iteration after the other. Here an
iteration beside decodes takes prompts of BESIDE_TOKENS in all, or a single one that is longer, and
DECODES_BETWEEN iterations of decodes alone lie between two such.
"""

BESIDE_TOKENS = 512
DECODES_BETWEEN = 1


def compose(batch, prompt_tokens):
    if batch.decodes == 0:
        return len(prompt_tokens)
    if batch.skips < DECODES_BETWEEN:
        return 0
    count, tokens = 1, prompt_tokens[0]
    while count < len(prompt_tokens) and tokens + prompt_tokens[count] <= BESIDE_TOKENS:
        tokens += prompt_tokens[count]
        count += 1
    return count
