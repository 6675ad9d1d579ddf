"""The text of a request that a lost machine interrupts, where the tokenizer knows spaces."""

from scripted_cluster import ScriptedCluster
from sentence_piece import sentence_piece

from splitwise.engine.sampling import SamplingParams
from splitwise.gateway.openai.answer import Answer
from splitwise.gateway.openai.validation import OutputOptions
from splitwise.gateway.text.codec import TextCodec
from splitwise.protocol.generation import GenerationRequest
from splitwise.scheduling.pool import Pool


async def test_a_retry_takes_no_space_away() -> None:
    tokenizer = sentence_piece("llama")
    prompt = tokenizer.encode("Hello", add_special_tokens=False).ids
    world = tokenizer.token_to_id("▁world")
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN, Pool.TOKEN)
    live = f.cluster.submit(GenerationRequest("r", prompt, 4, SamplingParams(), [], "", 0))
    options = OutputOptions(None, False, True, (), None, False)
    answer = Answer(0, prompt, options, TextCodec(tokenizer))
    at = len(prompt)
    text = ""
    f.output(0, live.task, at, world)
    f.output(1, live.task, at + 1, world)
    text += answer.take(await live.next()).text
    f.cluster.lose(1)
    f.output(0, live.task, at + 2, world)
    text += answer.take(await live.next()).text
    f.output(2, live.task, at + 3, world, finish=True)
    text += answer.take(await live.next()).text
    assert text == " world" * 4
