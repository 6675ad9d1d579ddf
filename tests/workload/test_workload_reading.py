"""Every format is told by its names; every bad value is reported with its place."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from splitwise.workload import Requests, WorkloadError, generate, read_requests, write_requests

ROOT = Path(__file__).parents[2]


def written(folder: Path, text: str, name: str = "trace") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def rows_of(requests: Requests) -> list[tuple[float, int, int]]:
    columns = requests.arrival_s, requests.prompt_tokens, requests.output_tokens
    return list(zip(*(column.tolist() for column in columns), strict=True))


AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens\r
2023-11-16 23:59:59.5000000,4808,10\r
2023-11-17 00:00:00.7500000,3180,8"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.250000+00:00,4808,10
2024-05-10 00:00:01.500000+00:00,3180,8
"""
SIMULATOR = """request_id,application_id,arrival_timestamp,batch_size,prompt_size,token_size
0,0,0.5,1,4808,10
1,0,1.75,1,3180,8
"""
PLAIN = "arrival_s,prompt_tokens,output_tokens\n0.5,4808,10\n\n1.75,3180,8\n"
MOONCAKE = """{"timestamp": 500, "input_length": 4808, "output_length": 10, "hash_ids": [1, 2]}
{"timestamp": 1750, "input_length": 3180, "output_length": 8, "hash_ids": []}
"""
OWN_LINES = """{"arrival_s": 0.5, "prompt_tokens": 4808, "output_tokens": 10}
{"arrival_s": 1.75, "prompt_tokens": 3180, "output_tokens": 8}
"""
BENCH = '{"start_times": [70.5, 71.75], "input_lens": [4808, 3180], "output_lens": [10, 8]}'


@pytest.mark.parametrize(
    ("text", "start_s"),
    [
        (AZURE_2023, 0.0),
        (AZURE_2024, 0.0),
        (SIMULATOR, 0.5),
        (PLAIN, 0.5),
        (MOONCAKE, 0.5),
        (OWN_LINES, 0.5),
        (BENCH, 0.0),
    ],
)
def test_every_format_gives_the_same_requests(tmp_path: Path, text: str, start_s: float) -> None:
    requests = read_requests(written(tmp_path, text))
    assert rows_of(requests) == [(start_s, 4808, 10), (start_s + 1.25, 3180, 8)]


def test_requests_are_sorted_by_arrival(tmp_path: Path) -> None:
    header, first, _, second = PLAIN.splitlines()
    requests = read_requests(written(tmp_path, "\n".join([header, second, first])))
    assert rows_of(requests) == [(0.5, 4808, 10), (1.75, 3180, 8)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "trace: empty"),
        (PLAIN.splitlines()[0], "trace: no requests"),
        ("when,what\n1,2\n", "trace:1: no known format in 'when, what'"),
        (PLAIN + "2,x,3\n", "trace:5: prompt_tokens 'x': give a whole number"),
        (PLAIN + "2,3,0\n", "trace:5: output_tokens '0': give a whole number of 1 or more"),
        (PLAIN + "nan,3,4\n", "trace:5: arrival_s 'nan': give a time"),
        (PLAIN + "2,3\n", "trace:5: output_tokens ''"),
        (PLAIN + "-1,3,4\n", "trace: arrival_s[0] is -1.0"),
        (AZURE_2024 + "yesterday,3,4\n", "trace:4: TIMESTAMP 'yesterday'"),
        (MOONCAKE + "{\n", "trace:3: not a JSON object"),
        (MOONCAKE + "[]\n", "trace:3: '[]' is not a JSON object"),
        (MOONCAKE + '{"timestamp": 3, "input_length": 4}\n', "trace:3: output_length None"),
        (
            MOONCAKE + '{"timestamp": 3, "input_length": 4.5, "output_length": 1}\n',
            "trace:3: input_length 4.5",
        ),
        ('{"prompt": "hello"}\n', "trace:1: no known format in 'prompt'"),
        (
            BENCH.replace("[10, 8]", "[10]"),
            "output_lens have [2, 2, 1] entries",
        ),
        (BENCH.replace("[10, 8]", "[10, 0]"), "trace:1, request 1: output_lens 0"),
        (BENCH.replace("[4808, 3180]", "2"), "trace:1: input_lens '2': expected a list"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        read_requests(written(tmp_path, text))
    assert complaint in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="nowhere: cannot be read"):
        read_requests(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_written_requests_read_the_same(tmp_path: Path, name: str) -> None:
    requests = generate("conversation", 7, count=100)
    write_requests(requests, tmp_path / name)
    assert rows_of(read_requests(tmp_path / name)) == rows_of(requests)


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"unknown ending '\.txt'; choose \.csv or \.jsonl"):
        write_requests(generate("coding", 7, count=1), tmp_path / "out.txt")


def test_a_vllm_result_file_keeps_its_other_keys_to_itself(tmp_path: Path) -> None:
    result = {**json.loads(BENCH), "date": "20260101", "ttfts": [0.1, 0.2]}
    assert len(read_requests(written(tmp_path, json.dumps(result)))) == 2


def test_twenty_thousand_rows_take_well_under_a_second(tmp_path: Path) -> None:
    lines = [f"2024-05-10 00:00:00.{row:06d}+00:00,{row + 1},7" for row in range(20_000)]
    file = written(tmp_path, "\n".join([AZURE_2024.splitlines()[0], *lines]))
    begun = time.process_time()
    assert len(read_requests(file)) == 20_000
    assert time.process_time() - begun < 0.8


def test_the_public_traces_are_read_whole() -> None:
    data = Path(os.environ.get("SPLITWISE_TRACES", ROOT.parent / "shared" / "data"))
    if not (data / "azure_llm_2023").is_dir():
        pytest.skip(f"no azure_llm_2023 in {data}; set SPLITWISE_TRACES to the traces' folder")
    trace = read_requests(data / "azure_llm_2023" / "AzureLLMInferenceTrace_conv.csv")
    assert (len(trace), trace.arrival_s[0]) == (19_366, 0.0)
    assert trace.rate_per_s == pytest.approx(5.53, abs=0.01)
    assert np.median(trace.prompt_tokens) == 1020
