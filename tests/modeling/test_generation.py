"""Generation, caches, chunks, turns and compilation: remote code against the definition on the stock model."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import CompileConfig, DynamicCache, StaticCache

from tests.support.definition import CACHE, RAGGED, SLIDING, TOLERANCE, Pair, generate, relative_error

QUESTION = RAGGED[0]


def assert_generates_as_defined(pair: Pair, inputs: Any, **options: Any) -> Any:
    """Sequences and scores equal the definition's, not the dense model's. Returns the sequences."""
    _, dense = generate(pair, pair.stock, inputs, **options)
    with pair.oracle():
        sequences, scores = generate(pair, pair.stock, inputs, **options)
    mine, my_scores = generate(pair, pair.shortv, inputs, **options)
    assert torch.equal(mine, sequences)
    finite = scores.isfinite()
    assert torch.equal(finite, my_scores.isfinite())
    assert relative_error(my_scores, scores, finite) <= TOLERANCE
    first = dense[0].isfinite() & finite[0]
    assert relative_error(scores[0], dense[0], first) > 1000 * TOLERANCE
    return mine


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"do_sample": True, "temperature": 1.5},
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "do_sample": True},
        {"cache_implementation": "static"},
        {"repetition_penalty": 1.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_ways_to_generate(load_pair, model_type, options):
    pair = load_pair(model_type)
    assert_generates_as_defined(pair, pair.inputs(*RAGGED), **options)


def test_right_padding(load_pair):
    """Stock generation reads its first scores from a padding row, so that row must be computed."""
    pair = load_pair()
    assert_generates_as_defined(pair, pair.inputs(*RAGGED, padding_side="right"))


def test_quantized_and_offloaded_caches(load_pair):
    pair = load_pair()
    inputs = pair.inputs(*RAGGED)
    done = []
    for options in (
        {"cache_implementation": "offloaded"},
        {"cache_implementation": "offloaded_static"},
        {"cache_implementation": "quantized", "cache_config": {"backend": "quanto", "nbits": 4}},
        {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}},
    ):
        try:
            generate(pair, pair.stock, inputs, **options)
        except Exception as error:  # unsupported by the stock model here
            print(options, type(error).__name__, str(error)[:200])
            continue
        assert_generates_as_defined(pair, inputs, **options)
        done.append(options)
    if not done:
        pytest.skip("the stock model runs with no offloaded or quantized cache here")


@pytest.mark.parametrize("text_model", ["mistral", "qwen2"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_sliding_window_that_binds(load_pair, text_model, cache):
    pair = load_pair(text_model=text_model, text_config=SLIDING[text_model])
    options = {} if cache == "dynamic" else {"cache_implementation": cache}
    assert_generates_as_defined(pair, pair.inputs(*RAGGED), **options)


class TestAssistedDecoding:
    def test_assistant(self, load_pair):
        pair = load_pair()
        inputs = pair.inputs(QUESTION)
        assistant = load_pair(seed=1).stock
        plain = assert_generates_as_defined(pair, inputs)
        for model in (pair.shortv, assistant):
            sequences, _ = generate(pair, pair.shortv, inputs, assistant_model=model)
            assert torch.equal(sequences, plain)

    def test_prompt_lookup(self, load_pair):
        pair = load_pair()
        inputs = pair.inputs("USER: what is in this picture <image>\n USER: what is in this picture")
        plain = assert_generates_as_defined(pair, inputs, max_new_tokens=12)
        sequences, _ = generate(pair, pair.shortv, inputs, max_new_tokens=12, prompt_lookup_num_tokens=3)
        assert torch.equal(sequences, plain)


@pytest.fixture
def chunked_prefill(load_pair):
    """Skips where stock LLaVA cannot prefill a prompt with an image in chunks."""
    pair = load_pair()
    try:
        generate(pair, pair.stock, pair.inputs(QUESTION), prefill_chunk_size=8)
    except Exception as error:
        pytest.skip(f"stock LLaVA cannot prefill in chunks: {error}")


@pytest.mark.usefixtures("chunked_prefill")
class TestPrefillInChunks:
    # 7 text tokens precede the first image of 16. Chunk sizes: 8, one chunk is all image; 5, cuts inside the image;
    # 1, every token alone; 22, the last image token starts a new chunk.
    @pytest.mark.parametrize(
        ("size", "prompts"),
        [
            (1, RAGGED[:1]),
            (1, ("USER: is it <image>\n yes", "USER: <image>\n is it yes")),  # text beside image, and no padding
            (8, RAGGED[:1]),
            (22, RAGGED[:1]),
            (5, RAGGED[1:2]),
            (5, RAGGED),
            (8, RAGGED),
            (1000, RAGGED),
        ],
    )
    def test_llava(self, load_pair, size, prompts):
        pair = load_pair()
        inputs = pair.inputs(*prompts)
        whole = assert_generates_as_defined(pair, inputs)
        assert torch.equal(assert_generates_as_defined(pair, inputs, prefill_chunk_size=size), whole)

    def test_a_last_chunk_of_one_image_token(self, load_pair):
        pair = load_pair()
        inputs = pair.inputs("USER: in this picture <image>")
        assert pair.visual(inputs)[0, -1]
        length = inputs["input_ids"].shape[1]
        assert_generates_as_defined(pair, inputs, prefill_chunk_size=length - 1)

    def test_static_cache(self, load_pair):
        pair = load_pair()
        assert_generates_as_defined(pair, pair.inputs(*RAGGED), prefill_chunk_size=8, cache_implementation="static")

    def test_llava_next(self, load_pair):
        pair = load_pair("llava_next")
        inputs = pair.inputs(*RAGGED)
        try:
            generate(pair, pair.stock, inputs, prefill_chunk_size=16)
        except Exception as error:
            pytest.skip(f"stock LLaVA-NeXT cannot prefill in chunks: {error}")
        assert_generates_as_defined(pair, inputs, prefill_chunk_size=16)


def test_the_report_after_generating_is_of_the_prefill(load_pair):
    pair = load_pair()
    inputs = pair.inputs(QUESTION)
    with torch.no_grad():
        pair.shortv(**inputs)
    report = pair.shortv.shortv_report()
    assert report["visual_tokens"] == int((inputs["input_ids"] == pair.shortv.config.image_token_id).sum()) > 0
    generate(pair, pair.shortv, inputs)
    assert pair.shortv.shortv_report() == report


class TestTurns:
    """Conversations that continue on the cache of earlier turns."""

    @pytest.mark.parametrize("later", ["<image>\n and in this picture ?", "is there a cat ?"], ids=["image", "text"])
    @pytest.mark.parametrize("model_type", ["llava", "llava_next"])
    def test_forward(self, load_pair, model_type, later):
        pair = load_pair(model_type)
        results = []
        for model in (pair.stock, pair.shortv):
            cache = DynamicCache(config=model.config.text_config)
            with torch.no_grad(), pair.oracle():
                first = pair.inputs(QUESTION)
                model(**first, **{CACHE: cache}, use_cache=True)
                second = pair.inputs(later)
                second["attention_mask"] = torch.cat([first["attention_mask"], second["attention_mask"]], dim=1)
                results.append(model(**second, **{CACHE: cache}, use_cache=True).logits)
        assert relative_error(results[1], results[0]) <= TOLERANCE
        assert (pair.shortv.shortv_report()["skipped_updates"] > 0) == ("<image>" in later)

    @pytest.mark.parametrize("later", [" <image>\n and this picture ? ASSISTANT:", " is it a cat ? ASSISTANT:"])
    @pytest.mark.parametrize("cache_type", ["dynamic", "static"])
    def test_generate(self, load_pair, later, cache_type):
        """Generation goes on after an answer, as stock LLaVA supports it."""
        pair = load_pair()
        scores = {}
        for name, model in (("stock", pair.stock), ("shortv", pair.shortv)):
            config = model.config.text_config
            cache = DynamicCache(config=config) if cache_type == "dynamic" else StaticCache(config, max_cache_len=128)
            with pair.oracle():
                first = pair.inputs(QUESTION)
                answer, _ = generate(pair, model, first, **{CACHE: cache})
                second = pair.inputs(later.strip())
                ids = torch.cat([answer, second["input_ids"][:, 1:]], dim=1)
                inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                if "pixel_values" in second:
                    inputs["pixel_values"] = second["pixel_values"]
                try:
                    scores[name] = generate(pair, model, inputs, **{CACHE: cache})[1]
                except Exception as error:
                    if name == "stock":
                        pytest.skip(f"stock LLaVA cannot continue like this: {error}")
                    raise
        written = scores["stock"].isfinite()
        assert relative_error(scores["shortv"], scores["stock"], written) <= TOLERANCE

    def test_the_cache_equals_the_definitions(self, load_pair):
        pair = load_pair()
        inputs = pair.inputs(*RAGGED)
        caches = []
        for model in (pair.stock, pair.shortv):
            with torch.no_grad(), pair.oracle():
                caches.append(model(**inputs, use_cache=True)[CACHE])
        rows = inputs["attention_mask"].bool()
        for mine, theirs in zip(caches[1].layers, caches[0].layers, strict=True):
            for name in ("keys", "values"):
                actual, expected = (getattr(layer, name).transpose(1, 2) for layer in (mine, theirs))
                assert relative_error(actual, expected, rows) <= TOLERANCE


def test_a_generated_image_token_is_text(load_pair):
    """Its row, and every later step, equals the stock model's."""
    pair = load_pair()
    inputs = pair.inputs(QUESTION)
    image_token = pair.stock.config.image_token_id

    def write_image_token(batch: int, prefix: Any) -> list[int]:
        return [image_token] if len(prefix) % 2 else list(range(image_token))

    options = {"prefix_allowed_tokens_fn": write_image_token, "suppress_tokens": None}
    sequences = assert_generates_as_defined(pair, inputs, **options)
    assert (sequences[0, inputs["input_ids"].shape[1] :] == image_token).sum() == 3


class TestEmbeddings:
    def test_placeholders(self, load_pair):
        pair = load_pair()
        assert_generates_as_defined(pair, pair.embedded(*RAGGED)[0])

    @pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=str)
    def test_merged_features_with_a_mask(self, load_pair, options):
        pair = load_pair()
        inputs, visual = pair.merged(*RAGGED)
        frozen = visual.repeat_interleave(options.get("num_beams", 1), dim=0)
        with pair.defined(frozen):
            _, expected = generate(pair, pair.stock, inputs, **options)
        _, actual = generate(pair, pair.shortv, {**inputs, "visual_mask": visual}, **options)
        assert relative_error(actual, expected, expected.isfinite()) <= TOLERANCE
        with pytest.raises(ValueError, match="visual_mask"):
            generate(pair, pair.shortv, inputs, **options)


def test_the_signature_is_the_stock_one_with_visual_mask(load_pair):
    pair = load_pair()
    stock, mine = (inspect.signature(model.forward).parameters for model in (pair.stock, pair.shortv))
    assert list(mine) == [*list(stock)[:-1], "visual_mask", list(stock)[-1]]
    with pytest.raises(ValueError, match="no_such_argument"):
        pair.shortv.generate(**pair.inputs(QUESTION), max_new_tokens=1, no_such_argument=1)


def assert_prefill_as_defined(pair: Pair, inputs: Any, model: Any = None) -> None:
    frozen = {name: value for name, value in inputs.items() if name != "visual_mask"}
    with torch.no_grad(), pair.oracle() if "visual_mask" not in inputs else pair.defined(inputs["visual_mask"]):
        expected = pair.stock(**frozen).logits
    with torch.no_grad():
        actual = (pair.shortv if model is None else model)(**inputs).logits
    assert relative_error(actual, expected, inputs["attention_mask"].bool()) <= TOLERANCE


def compile_forward(pair: Pair, dynamic: bool) -> None:
    """Compiles the forward pass without graph breaks."""
    with torch.no_grad():
        pair.shortv(**pair.inputs(QUESTION))  # the first pass of a vision tower takes a lock, which breaks a graph
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    forward = pair.shortv.forward
    pair.shortv.forward = torch.compile(forward, backend="eager", fullgraph=True, dynamic=dynamic)


def graphs() -> int:
    """Number of graphs compiled since `compile_forward`."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


class TestCompile:
    @pytest.fixture(autouse=True)
    def fresh_dynamo(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    def test_decoding_with_a_static_cache_has_no_graph_break(self, load_pair):
        pair = load_pair()
        inputs = pair.inputs(QUESTION)
        length = inputs["input_ids"].shape[1]
        steps = []
        for model in (pair.stock, pair.shortv):
            cache = StaticCache(config=model.config.text_config, max_cache_len=64)
            with torch.no_grad(), pair.oracle():
                model(**inputs, **{CACHE: cache}, use_cache=True)
                decode = torch.compile(model.forward, backend="eager", fullgraph=True)
                token = torch.tensor([[5]])
                for position in range(length, length + 3):
                    mask = torch.zeros(1, 1, 1, 64, dtype=torch.bool)
                    mask[..., : position + 1] = True
                    arguments = {"position_ids": torch.tensor([[position]]), "attention_mask": mask}
                    if "cache_position" in inspect.signature(model.forward).parameters:
                        arguments["cache_position"] = torch.tensor([position])
                    output = decode(input_ids=token, **{CACHE: cache}, use_cache=True, **arguments)
            steps.append(output.logits)
        assert relative_error(steps[1], steps[0]) <= TOLERANCE

    def test_a_compiled_model_finds_text_rows_in_between(self, load_pair):
        """Finding the text rows breaks the graph of a model compiled as a whole, and the result is right."""
        pair = load_pair(num_layers=3)
        compiled = torch.compile(pair.shortv, backend="eager")
        for padding_side in ("left", "right"):
            assert_prefill_as_defined(pair, pair.inputs(*RAGGED, padding_side=padding_side), compiled)

    def test_compiled_forward_needs_no_graph_break(self, load_pair):
        """As the documentation of transformers compiles models. Prompts of any length share a graph."""
        pair = load_pair(num_layers=3)
        compile_forward(pair, dynamic=True)
        text = "is there a cat or a rocket in the picture ?"
        for number in (2, 3, 5):
            assert_prefill_as_defined(pair, pair.inputs(f"USER: <image>\n {text[: 8 * number]} ASSISTANT:"))
        assert graphs() == 1
        for _ in range(2):
            assert_prefill_as_defined(pair, pair.inputs(*RAGGED))  # with filler rows
            assert_prefill_as_defined(pair, pair.inputs(RAGGED[3]))  # text only
            assert graphs() == 3

    def test_prompts_of_similar_lengths_share_a_captured_graph(self, load_pair):
        """CUDA graphs have fixed sizes: prompts padded to one length differ in their numbers of text rows only."""
        prompts = [f"USER: <image>\n what is in {'this ' * number} picture ?" for number in (1, 2, 5)]
        found = {}
        for multiple in (1, 16):
            pair = load_pair(num_layers=3)
            pair.shortv.text_rows_multiple = multiple
            compile_forward(pair, dynamic=False)
            for prompt in prompts:
                text = [prompt, prompts[-1]]  # the longest one pads the other, then only the first is kept
                inputs = {name: values[:1] for name, values in pair.inputs(*text).items()}
                assert_prefill_as_defined(pair, inputs)
            found[multiple] = graphs()
        assert found == {1: len(prompts), 16: 1}

    def test_generate_compiles_prefill_and_decoding(self, load_pair):
        pair = load_pair()
        inputs = pair.inputs(*RAGGED)
        options = {"max_new_tokens": 5, "do_sample": False, "cache_implementation": "static", "min_new_tokens": 5}
        with torch.no_grad(), pair.oracle():
            expected = pair.stock.generate(**inputs, **options)
        config = CompileConfig(backend="eager", fullgraph=True, mode=None)
        config._compile_all_devices = True
        compile_forward(pair, dynamic=True)
        actual = pair.shortv.generate(**inputs, **options, compile_config=config)
        assert torch.equal(actual, expected)
        assert graphs() == 2  # of the prefill and of decoding
        again = pair.shortv.generate(**inputs, **options, compile_config=config)
        assert torch.equal(again, expected)
        assert graphs() == 2
