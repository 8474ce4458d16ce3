"""Trains the bundled demo model from scratch on two CPU cores.

    python training/train_demo_model.py WORK_FOLDER

A model of other sizes whose layers were not split, which `benchmarks/selection.py --model` can compare with:

    python training/train_demo_model.py OTHER_FOLDER --seed 1 --layers 6 --shallow 6 --hidden 160 --heads 5 --ffn 480

There are six stages. Each continues from the newest checkpoint in the work folder.

1. *tower*: the vision tower, the projector and the word embeddings learn together, as in CLIP: the inner products of
   a patch's projected feature with the word embeddings must tell what the patch shows.
2. *shallow*: a language model of few layers learns to answer; the tower is frozen. Many questions share one image.
   Each attends to the image and to itself only, as if it were alone in the chat prompt.
3. *lookup*: the same with a lower learning rate and without questions about relations.
4. *deep*: every layer is split into several of a fraction of its strength, which train on.
5. *polish*: a lower learning rate, and more questions about positions and relations.
6. *settle*: mostly those questions, so that the split layers become different.

Matrices are trained with Muon, everything else with AdamW; master weights are float32, the arithmetic bfloat16.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from shortv_export.demo import scenes
from training import demo_layout

SIZES = demo_layout.Sizes()
PATCHES = (scenes.IMAGE_SIZE // scenes.PATCH) ** 2
PREFIX = PATCHES + 3  # <s> USER : image
CHUNKS, CHUNK = 3, 80
ALL_TASKS = (
    *("caption", "reading", "relation", "existence", "count", "colour", "shape", "position") * 2,
    *("relation", "existence", "count", "position", "relation", "existence", "existence"),
    *("colour", "shape", "count", "relation", "existence"),
)
LOOKUP_TASKS = (
    *("caption", "reading", *["colour", "existence", "position"] * 4, *["shape", "count"] * 3),
    *["colour", "existence", "position", "existence"] * 2,
    *["existence"] * 4,
)
"""Without relations: until look-ups work, their answers are random and their gradients noise."""
SETTLE_TASKS = (
    *("caption", "reading", "count", "colour", "shape", "existence"),
    *["position", "relation"] * 6,
    *("count", "colour", "existence", "count", "existence"),
)
COOLDOWN = {"tower": 0.4, "shallow": 0.4, "lookup": 0.4, "deep": 0.62, "polish": 0.8, "settle": 0.6}
"""The share of each stage's steps in which the learning rate falls."""
BF16 = torch.bfloat16


class Muon:
    """Momentum, orthogonalised by Newton-Schulz steps; the last two dimensions of weights are matrices."""

    def __init__(self, parameters: Sequence[Tensor], lr: float, decay: float = 0.01) -> None:
        self.parameters, self.lr, self.decay = list(parameters), lr, decay
        self.momenta = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, factor: float, momentum: float = 0.95) -> None:
        groups: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, average in zip(self.parameters, self.momenta, strict=True):
            assert parameter.grad is not None
            average.lerp_(parameter.grad, 1 - momentum)
            update = parameter.grad.lerp(average, momentum)
            parameter.grad = None
            for matrix, change in zip(
                parameter.view(-1, *parameter.shape[-2:]), update.view(-1, *parameter.shape[-2:]), strict=True
            ):
                groups[tuple(matrix.shape)].append((matrix, change))
        for (rows, columns), members in groups.items():
            changes = orthogonalised(torch.stack([change for _, change in members]))
            scale = self.lr * factor * max(1.0, rows / columns) ** 0.5
            for (matrix, _), change in zip(members, changes, strict=True):
                matrix.mul_(1 - self.lr * factor * self.decay).add_(change, alpha=-scale)


def orthogonalised(matrices: Tensor) -> Tensor:
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(BF16)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


def schedule(step: int, steps: int, warmup: int = 40, cooldown: float = 0.4) -> float:
    return min(1.0, (step + 1) / warmup, max(0.02, (steps - step) / (cooldown * steps)))


# ------------------------------------------------------------------------------------------------ data


class Vocabulary:
    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.cache: dict[str, list[int]] = {}
        self.end = tokenizer.eos_token_id

    def ids(self, text: str) -> list[int]:
        if text not in self.cache:
            self.cache[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.cache[text]

    def one(self, word: str) -> int:
        index = self.tokenizer.convert_tokens_to_ids(word)
        assert index != self.tokenizer.unk_token_id, word
        return int(index)


def pixels(batch: Sequence[scenes.Scene]) -> Tensor:
    images = torch.from_numpy(np.stack([scenes.draw(scene) for scene in batch]))
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def patch_labels(scene: scenes.Scene, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """The classes of each patch by kind; colour, shape and letter are 0 where there is none."""
    side = scenes.IMAGE_SIZE // scenes.PATCH
    span = scenes.CELL // scenes.PATCH
    labels = {name: np.zeros((side, side), np.int64) for name in ("colour", "shape", "letter")}
    for thing in scene.things:
        area: Any = np.s_[thing.row * span : (thing.row + 1) * span, thing.column * span : (thing.column + 1) * span]
        labels["colour"][area] = 1 + list(scenes.COLOURS).index(thing.colour)
        labels["shape"][area] = 1 + list(scenes.SHAPES).index(thing.shape)
    area = np.s_[scene.sign_row * span : (scene.sign_row + 1) * span, scene.sign_column * span :]
    labels["shape"][area][:, :span] = 1 + len(scenes.SHAPES)
    middle = scene.sign_row * span + span // 2
    for place, letter in enumerate(scene.word):
        letters = LETTERS.index(letter if place == 0 else f"##{letter}")
        labels["letter"][middle, scene.sign_column * span + place] = 1 + letters
    rows = np.arange(side) // span
    labels["row"] = np.repeat(rows[:, None], side, 1)
    labels["column"] = np.repeat(rows[None], side, 0)
    return labels


LETTERS = [*scenes.CONSONANTS, *(f"##{letter}" for letter in sorted({*scenes.CONSONANTS, *scenes.VOWELS}))]


def text_batch(
    batch: Sequence[scenes.Scene], vocabulary: Vocabulary, tasks: Sequence[str] = ALL_TASKS
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Questions and answers about each scene, packed in chunks: tokens, targets (-100: none), positions, owners."""
    shape = (len(batch), CHUNKS, CHUNK)
    tokens, targets = np.zeros(shape, np.int64), np.full(shape, -100, np.int64)
    positions, owners = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    for row, scene in enumerate(batch):
        used = [0] * CHUNKS
        for number, question in enumerate(scenes.ask(scene, tasks)):
            prompt = vocabulary.ids(f"{question.text} ASSISTANT:")
            answer = [*vocabulary.ids(question.answer), vocabulary.end]
            ids = [*prompt, *answer]
            length = len(ids) - 1
            chunk = min(range(CHUNKS), key=used.__getitem__)
            if used[chunk] + length > CHUNK:
                continue
            area = slice(used[chunk], used[chunk] + length)
            tokens[row, chunk, area] = ids[:-1]
            targets[row, chunk, area][len(prompt) - 1 :] = answer
            positions[row, chunk, area] = PREFIX + np.arange(length)
            owners[row, chunk, area] = number
            used[chunk] += length
    arrays = (torch.from_numpy(array).flatten(0, 1) for array in (tokens, targets, positions, owners))
    return tuple(arrays)  # type: ignore[return-value]


def scene_batches(start: int, size: int) -> Iterator[list[scenes.Scene]]:
    seed = scenes.TRAINING_SEEDS[start]
    while True:
        yield [scenes.make_scene(seed + offset) for offset in range(size)]
        seed += size


# ------------------------------------------------------------------------------------------------ language model


class Stack(nn.Module):
    """A Llama with the weights of its layers stacked; it computes the stock model for packed questions."""

    def __init__(self, layers: int, embeddings: Tensor) -> None:
        super().__init__()

        def orthogonal(*shape: int) -> Tensor:
            return torch.stack([nn.init.orthogonal_(torch.empty(shape[1:])) for _ in range(shape[0])])

        # Initially, tokens attend to similar tokens and copy them: heads start as look-ups.
        query, value = orthogonal(layers, SIZES.hidden, SIZES.hidden), orthogonal(layers, SIZES.hidden, SIZES.hidden)
        key = 0.6 * query + 0.8 * orthogonal(layers, SIZES.hidden, SIZES.hidden)
        self.qkv = nn.Parameter(torch.stack([query, key, value], 1))
        self.out = nn.Parameter(0.3 * value.mT + 0.05 * orthogonal(layers, SIZES.hidden, SIZES.hidden))
        self.gate_up = nn.Parameter(torch.randn(layers, 2, SIZES.ffn, SIZES.hidden) / SIZES.hidden**0.5)
        self.down = nn.Parameter(0.2 * torch.randn(layers, SIZES.hidden, SIZES.ffn) / SIZES.ffn**0.5)
        self.norms = nn.Parameter(torch.ones(layers, 2, SIZES.hidden))
        self.norm = nn.Parameter(torch.ones(SIZES.hidden))
        self.embeddings = nn.Parameter(embeddings.clone())
        self.head = nn.Parameter(embeddings / SIZES.hidden**0.5)

    def matrices(self) -> list[Tensor]:
        return [self.qkv, self.out, self.gate_up, self.down]

    def others(self) -> list[Tensor]:
        return [self.norms, self.norm, self.embeddings, self.head]

    def grown(self, copies: int) -> Stack:
        """Splits every layer into `copies` layers of a fraction of its strength."""
        layers = self.qkv.shape[0] * copies
        with torch.no_grad():
            deep = Stack(layers, self.embeddings)
            for name, parameter in self.named_parameters():
                value = parameter.data
                if name in {"qkv", "out", "gate_up", "down", "norms"}:
                    value = value.repeat_interleave(copies, 0)
                    if name in {"out", "down"}:
                        value = value / copies
                getattr(deep, name).data.copy_(value)
        return deep

    def forward(self, visual: Tensor, begin: Tensor, texts: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Any, ...]:
        """Loss of each target token, whether it is right, and the mask of target tokens."""
        tokens, targets, positions, owners = texts
        embeddings = self.embeddings.to(BF16)
        images = visual.shape[0]
        prefix = torch.cat([F.embedding(begin, embeddings).expand(images, -1, -1), visual.to(BF16)], 1)
        text = F.embedding(tokens, embeddings)
        own = (owners[:, :, None] == owners[:, None, :]).tril()
        mask = torch.cat([torch.ones(*own.shape[:2], PREFIX, dtype=torch.bool), own], 2)[:, None]
        bias = torch.zeros(mask.shape, dtype=BF16).masked_fill_(~mask, -1e9)
        around, about = rotation(torch.arange(PREFIX)[None]), rotation(positions)
        weights = zip(*(w.to(BF16).unbind() for w in (*self.matrices(), self.norms)), strict=True)
        for layer in weights:
            prefix, text = LAYER(prefix, text, *layer, *around, *about, bias)
        chosen = targets >= 0
        final = F.rms_norm(text[chosen].float(), (SIZES.hidden,), self.norm, 1e-6)
        logits = final @ self.head.T
        wanted = targets[chosen]
        return F.cross_entropy(logits, wanted, reduction="none"), logits.argmax(-1) == wanted, chosen


def rotation(positions: Tensor) -> tuple[Tensor, Tensor]:
    frequencies = demo_layout.ROPE_THETA ** (-torch.arange(0, SIZES.head_size, 2) / SIZES.head_size)
    angles = (positions[..., None] * frequencies).repeat(1, 1, 2)[:, :, None]
    return angles.cos().to(BF16), angles.sin().to(BF16)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, other = x.chunk(2, -1)
    return x * cos + torch.cat([-other, one], -1) * sin


def layer_forward(
    prefix: Tensor,
    text: Tensor,
    qkv: Tensor,
    out: Tensor,
    gate_up: Tensor,
    down: Tensor,
    norms: Tensor,
    prefix_cos: Tensor,
    prefix_sin: Tensor,
    text_cos: Tensor,
    text_sin: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """One decoder layer: causal attention in the image; each chunk of text attends to the image and itself."""

    def projected(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed = F.rms_norm(x, (SIZES.hidden,), norms[0], 1e-6)
        q, k, v = F.linear(normed, qkv.flatten(0, 1)).view(*x.shape[:2], 3, SIZES.heads, SIZES.head_size).unbind(2)
        return turn(q, cos, sin).transpose(1, 2), turn(k, cos, sin).transpose(1, 2), v.transpose(1, 2)

    def finished(x: Tensor, mixed: Tensor) -> Tensor:
        x = x + F.linear(mixed.transpose(1, 2).flatten(2), out)
        normed = F.rms_norm(x, (SIZES.hidden,), norms[1], 1e-6)
        gate, up = F.linear(normed, gate_up.flatten(0, 1)).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, down)

    q, k, v = projected(prefix, prefix_cos, prefix_sin)
    text_q, text_k, text_v = projected(text, text_cos, text_sin)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    keys = torch.cat([k.repeat_interleave(CHUNKS, 0), text_k], 2)
    values = torch.cat([v.repeat_interleave(CHUNKS, 0), text_v], 2)
    text_mixed = F.scaled_dot_product_attention(text_q, keys, values, attn_mask=bias)
    return finished(prefix, mixed), finished(text, text_mixed)


LAYER: Any = layer_forward


# ------------------------------------------------------------------------------------------------ stages


class Trainer:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.folder: Path = arguments.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(arguments.seed)
        self.processor = demo_layout.build_processor()
        self.vocabulary = Vocabulary(self.processor.tokenizer)
        self.model = demo_layout.build_model(self.processor, replace(SIZES, layers=1))
        self.tower = self.model.model.vision_tower
        self.projector = self.model.model.multi_modal_projector
        self.words = nn.Parameter(torch.randn(len(self.processor.tokenizer), SIZES.hidden))
        self.begin = torch.tensor([[self.processor.tokenizer.bos_token_id, *self.vocabulary.ids("USER:")]])
        assert self.begin.shape[1] + PATCHES == PREFIX

    def visual(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", BF16):
            hidden = self.tower(images).last_hidden_state[:, 1:]
            return self.projector(hidden)

    def run(self) -> None:
        self.stage("tower", self.train_tower)
        self.stage("shallow", self.train_shallow)
        self.stage("lookup", self.train_lookup)
        self.stage("deep", self.train_deep)
        self.stage("polish", self.train_polish)
        self.stage("settle", self.train_settle)
        self.export_stage("settle", self.folder / "model")

    def export_stage(self, name: str, folder: Path) -> None:
        """Writes the model of a finished or unfinished stage."""
        stack = self.load_stack(name)
        export(self, stack, folder)

    def stage(self, name: str, train: Any) -> None:
        done = self.folder / f"{name}.pt"
        if not done.exists():
            train(name)
        print(f"{name}: done", flush=True)

    def loop(
        self, name: str, module: nn.Module, optimisers: tuple[Muon, Any], steps: int, batch: int, loss: Any
    ) -> None:
        """Trains from the newest checkpoint; saves one every minute and prints progress."""
        muon, adam = optimisers
        rates = [group["lr"] for group in adam.param_groups]
        checkpoint = self.folder / f"{name}.part"
        first = 0
        if checkpoint.exists():
            state = torch.load(checkpoint)
            module.load_state_dict(state["module"])
            adam.load_state_dict(state["adam"])
            for momentum, saved in zip(muon.momenta, state["muon"], strict=True):
                momentum.copy_(saved)
            first = state["step"]
        offset = 50_000_000 * list(COOLDOWN).index(name)
        data = scene_batches(offset + first * batch, batch)
        began = saved = time.time()
        report: dict[str, tuple[float, float]] = {}
        for step in range(first, steps):
            factor = schedule(step, steps, cooldown=COOLDOWN[name])
            value, details = loss(next(data))
            value.backward()
            muon.step(factor)
            for group, rate in zip(adam.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            adam.step()
            adam.zero_grad()
            for key, (right, number) in details.items():
                old_right, old_number = report.get(key, (0.0, 0.0))
                report[key] = (old_right + right, old_number + number)
            if (step + 1) % self.arguments.report == 0 or step + 1 == steps:
                rate = (step + 1 - first) * batch / (time.time() - began)
                text = " ".join(f"{key} {right / max(number, 1):.3f}" for key, (right, number) in report.items())
                print(f"{name} {step + 1}/{steps} {rate:.1f} images/s  {text}", flush=True)
                report = {}
            if time.time() - saved > 60 or step + 1 == steps:
                state = {"module": module.state_dict(), "adam": adam.state_dict(), "muon": muon.momenta}
                part = checkpoint.with_suffix(".new")
                torch.save(state | {"step": step + 1}, part)
                os.replace(part, checkpoint)
                saved = time.time()
        torch.save(module.state_dict(), self.folder / f"{name}.pt")

    def train_tower(self, name: str) -> None:
        torch.manual_seed(self.arguments.seed + 1)
        nothing = nn.Parameter(torch.randn(3, SIZES.hidden))
        cells = nn.Parameter(torch.randn(2 * scenes.GRID, SIZES.hidden))
        holder = nn.ParameterDict({"words": self.words, "nothing": nothing, "cells": cells})
        module = nn.ModuleDict({"tower": self.tower, "projector": self.projector, "rest": holder})
        matrices = [p for n, p in module.named_parameters() if p.dim() == 2 and ("layers" in n or "linear" in n)]
        kept = {id(p) for p in matrices}
        used = [p for n, p in module.named_parameters() if id(p) not in kept and "post_layernorm" not in n]
        groups = (
            [self.vocabulary.one(word) for word in scenes.COLOURS],
            [self.vocabulary.one(word) for word in [*scenes.SHAPES, "sign"]],
            [self.vocabulary.one(word) for word in LETTERS],
        )

        def loss(batch: list[scenes.Scene]) -> tuple[Tensor, dict[str, tuple[float, float]]]:
            features = self.visual(pixels(batch)).float()
            labels = [patch_labels(scene, self.vocabulary) for scene in batch]
            total, details = torch.zeros(()), {}
            for index, key in enumerate(("colour", "shape", "letter", "row", "column")):
                target = torch.from_numpy(np.stack([label[key] for label in labels])).flatten(1)
                if index < 3:
                    table = torch.cat([nothing[index : index + 1], self.words[groups[index]]])
                else:
                    table = cells.view(2, scenes.GRID, SIZES.hidden)[index - 3]
                logits = features @ F.rms_norm(table, (SIZES.hidden,)).T / SIZES.hidden**0.5
                weight = (target > 0) * (3.0 if index < 2 else 12.0) + 1.0 if index < 3 else torch.ones(target.shape)
                losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
                total = total + (losses * weight.flatten()).mean() * (0.3 if index >= 3 else 1.0)
                asked = target > 0 if index < 3 else target >= 0
                right = (logits.argmax(-1) == target)[asked]
                details[key] = (float(right.sum()), float(right.numel()))
            # The feature scale that the language model expects.
            total = total + 0.01 * (features.square().mean(-1).add(1e-6).sqrt() - 1).square().mean()
            return total, details

        optimisers = (Muon(matrices, 0.02), torch.optim.AdamW(used, 3e-3, (0.9, 0.98), weight_decay=0))
        self.loop(name, module, optimisers, self.arguments.tower_steps, 16, loss)

    def load_tower(self) -> None:
        state = torch.load(self.folder / "tower.pt")
        pick = lambda start: {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}  # noqa: E731
        self.tower.load_state_dict(pick("tower."))
        self.projector.load_state_dict(pick("projector."))
        self.words.data = F.rms_norm(state["rest.words"], (SIZES.hidden,))
        self.tower.requires_grad_(False)

    def train_language(
        self, name: str, stack: Stack, steps: int, batch_size: int, rate: float, tasks: Sequence[str]
    ) -> None:
        global LAYER
        if self.arguments.compile:
            LAYER = torch.compile(layer_forward, dynamic=False)
        module = nn.ModuleDict({"stack": stack, "projector": self.projector})
        adam = torch.optim.AdamW(
            [
                {"params": stack.others(), "lr": 0.1 * rate},
                {"params": list(self.projector.parameters()), "lr": 0.02 * rate},
            ],
            betas=(0.9, 0.98),
            weight_decay=0,
        )

        def loss(batch: list[scenes.Scene]) -> tuple[Tensor, dict[str, tuple[float, float]]]:
            texts = text_batch(batch, self.vocabulary, tasks)
            with torch.no_grad(), torch.autocast("cpu", BF16):
                hidden = self.tower(pixels(batch)).last_hidden_state[:, 1:]
            with torch.autocast("cpu", BF16):
                visual = self.projector(hidden)
            losses, right, chosen = stack(visual, self.begin, texts)
            details = {"loss": (float(losses.detach().sum()), float(losses.numel()))}
            details |= task_accuracy(batch, tasks, texts[3], chosen, right)
            # The end token is learnt quickly, so it counts less.
            weights = torch.where(texts[1][chosen] == self.vocabulary.end, 0.2, 1.0)
            return (losses * weights).sum() / weights.sum(), details

        self.loop(name, module, (Muon(stack.matrices(), rate), adam), steps, batch_size, loss)

    def train_shallow(self, name: str) -> None:
        self.load_tower()
        torch.manual_seed(self.arguments.seed + 2)
        stack = Stack(self.arguments.shallow, self.words.data)
        self.train_language(name, stack, self.arguments.shallow_steps, 8, 0.02, ALL_TASKS)

    def train_lookup(self, name: str) -> None:
        stack = self.load_stack("shallow")
        torch.manual_seed(self.arguments.seed + 3)
        self.train_language(name, stack, self.arguments.lookup_steps, 8, 0.01, LOOKUP_TASKS)

    def train_deep(self, name: str) -> None:
        stack = self.load_stack("lookup")
        torch.manual_seed(self.arguments.seed + 4)
        deep = stack.grown(self.arguments.layers // self.arguments.shallow)
        self.train_language(name, deep, self.arguments.deep_steps, 8, 0.01, (*LOOKUP_TASKS, "relation"))

    def train_polish(self, name: str) -> None:
        stack = self.load_stack("deep")
        torch.manual_seed(self.arguments.seed + 5)
        tasks = (*LOOKUP_TASKS, *["relation", "position"] * 4)
        self.train_language(name, stack, self.arguments.polish_steps, 8, 0.005, tasks)

    def train_settle(self, name: str) -> None:
        stack = self.load_stack("polish")
        torch.manual_seed(self.arguments.seed + 6)
        self.train_language(name, stack, self.arguments.settle_steps, 8, 0.01, SETTLE_TASKS)

    def load_stack(self, name: str) -> Stack:
        """The language model of a finished or unfinished stage; loads its projector too."""
        self.load_tower()
        finished, part = self.folder / f"{name}.pt", self.folder / f"{name}.part"
        state = torch.load(finished) if finished.exists() else torch.load(part)["module"]
        stack = Stack(state["stack.qkv"].shape[0], self.words.data)
        nn.ModuleDict({"stack": stack, "projector": self.projector}).load_state_dict(state)
        return stack


def export(trainer: Trainer, stack: Stack, folder: Path) -> Any:
    """The stock model with the trained weights, written to `folder`."""
    layers = stack.qkv.shape[0]
    model = demo_layout.build_model(trainer.processor, replace(SIZES, layers=layers))
    model.model.vision_tower.load_state_dict(trainer.tower.state_dict())
    model.model.multi_modal_projector.load_state_dict(trainer.projector.state_dict())
    text = model.model.language_model
    with torch.no_grad():
        text.embed_tokens.weight.copy_(stack.embeddings)
        text.norm.weight.copy_(stack.norm)
        model.lm_head.weight.copy_(stack.head)
        for index, layer in enumerate(text.layers):
            attention, mlp = layer.self_attn, layer.mlp
            for projection, weight in zip(
                (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj),
                (*stack.qkv[index], *stack.gate_up[index]),
                strict=True,
            ):
                projection.weight.copy_(weight)
            attention.o_proj.weight.copy_(stack.out[index])
            mlp.down_proj.weight.copy_(stack.down[index])
            layer.input_layernorm.weight.copy_(stack.norms[index, 0])
            layer.post_attention_layernorm.weight.copy_(stack.norms[index, 1])
    demo_layout.save(model.eval(), trainer.processor, folder)
    return model


def task_accuracy(
    batch: Sequence[scenes.Scene], tasks: Sequence[str], owners: Tensor, chosen: Tensor, right: Tensor
) -> dict[str, tuple[float, float]]:
    """The number of answers that are right in every token, and of all answers, by task."""
    table: dict[str, list[float]] = {task: [0.0, 0.0] for task in scenes.TASKS}
    asked = [scenes.ask(scene, tasks) for scene in batch]
    rows = torch.arange(len(owners))[:, None].expand_as(owners)[chosen] // CHUNKS
    verdicts: dict[tuple[int, int], bool] = {}
    for row, owner, good in zip(rows.tolist(), owners[chosen].tolist(), right.tolist(), strict=True):
        verdicts[row, owner] = verdicts.get((row, owner), True) and good
    for (row, owner), good in verdicts.items():
        entry = table[asked[row][owner].task]
        entry[0] += good
        entry[1] += 1
    return {task: (good, number) for task, (good, number) in table.items()}


def main() -> None:
    global SIZES
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="checkpoints go here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12, help="decoder layers of the finished model")
    parser.add_argument("--shallow", type=int, default=4, help="decoder layers of the second stage; they are split")
    parser.add_argument("--hidden", type=int, default=128, help="width of the hidden states")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--ffn", type=int, default=256, help="width of the feed-forward network")
    parser.add_argument("--tower-steps", type=int, default=420)
    parser.add_argument("--shallow-steps", type=int, default=1740)
    parser.add_argument("--lookup-steps", type=int, default=700)
    parser.add_argument("--deep-steps", type=int, default=950)
    parser.add_argument("--polish-steps", type=int, default=300)
    parser.add_argument("--settle-steps", type=int, default=2500)
    parser.add_argument("--report", type=int, default=25, help="steps between two lines of progress")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    arguments = parser.parse_args()
    SIZES = demo_layout.Sizes(arguments.layers, arguments.hidden, arguments.heads, arguments.ffn)
    torch.set_num_threads(arguments.threads)
    random.seed(arguments.seed)
    Trainer(arguments).run()


if __name__ == "__main__":
    main()
