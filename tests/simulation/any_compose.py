"""A policy whose batches depend on all that it is told; some prompts it never lets in by itself."""

from splitwise.scheduling.draws import draw


def compose(batch, prompt_tokens):  # type: ignore[no-untyped-def]
    if batch.number % 7 == 0 and batch.decodes > 1:
        return 0
    told = 3 * batch.skips + 5 * batch.decodes + 7 * batch.decode_skips + batch.free_tokens
    told += int(64 * batch.waited_s) + 11 * batch.batch_requests + batch.batch_tokens
    return draw(len(prompt_tokens) + 1, batch.number, told, int(prompt_tokens.sum()))
