"""vLLM alone, without any of ours: what it answers greedily. Run as a program, in its own process.

    python plain_vllm.py MODEL < prompts.json > answers.json

``prompts.json`` is a list of token lists; an answer is ``TOKENS`` tokens, whatever they are.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

TOKENS: Final = 12


def answers_alone(model: Path, prompts: Sequence[list[int]], threads: int) -> list[list[int]]:
    """What vLLM says to these, in a process of its own."""
    answers = subprocess.run(
        [sys.executable, __file__, model],
        input=json.dumps(prompts),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)},
    ).stdout
    return json.loads(answers)  # type: ignore[no-any-return]


def main(model: str) -> None:
    prompts = json.load(sys.stdin)
    answers_to = os.dup(1)
    os.dup2(2, 1)  # vLLM prints where it likes
    from vllm import LLM, SamplingParams

    llm = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        kv_cache_memory_bytes=2**30,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
    )
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    with os.fdopen(answers_to, "w") as file:
        json.dump([list(output.outputs[0].token_ids) for output in outputs], file)


if __name__ == "__main__":
    main(sys.argv[1])
