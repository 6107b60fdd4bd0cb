"""The Hugging Face `Trainer` with Shampoo: a small Llama learns to count, and resumes from a checkpoint of the Trainer."""

import argparse
import tempfile
from collections.abc import Sequence

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from shampoo_optim import Shampoo

VOCABULARY = 32


class Counting(Dataset):
    """Rows that count upwards from anywhere, in steps of 1, 2 or 3, modulo the vocabulary."""

    def __len__(self) -> int:
        return 3 * VOCABULARY

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (index // 3 + torch.arange(16) * (index % 3 + 1)) % VOCABULARY
        return {"input_ids": ids, "labels": ids}


def trainer(steps: int, directory: str) -> Trainer:
    """A Trainer of a new model that saves itself half-way."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=16, **sizes))
    # by name, so that embedding and head are recognised; the scheduler is the Trainer's, as its arguments say. A Trainer that
    # makes the optimizer itself, as under FSDP, keeps the names if its `create_optimizer` is overridden, or with
    # optimizer_cls_and_kwargs=(Shampoo, {"lr": 0.01, "params": list(model.named_parameters())}). Under DDP it saves what rank 0
    # alone has: Scattered() has all of the state there, Sharded() would wait for the other ranks
    optimizer = Shampoo(model.named_parameters(), lr=0.01, weight_decay=0.01)
    arguments = TrainingArguments(
        directory,
        max_steps=steps,
        per_device_train_batch_size=32,
        lr_scheduler_type="cosine",
        save_steps=steps // 2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    return Trainer(model, arguments, train_dataset=Counting(), optimizers=(optimizer, None))


def losses(finished: Trainer) -> list[float]:
    """What the Trainer logged, step by step."""
    return [float(entry["loss"]) for entry in finished.state.log_history if "loss" in entry]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, train the second half once more from the checkpoint, and print how both ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="an even number")
    steps = parser.parse_args(arguments).steps
    with tempfile.TemporaryDirectory() as directory:
        whole, resumed = trainer(steps, directory), trainer(steps, directory)
        whole.train()
        resumed.train(resume_from_checkpoint=f"{directory}/checkpoint-{steps // 2}")
    print(f"step {steps}: loss {losses(whole)[0]:.6g} -> {losses(whole)[-1]:.6g}")
    print(f"resumed at step {steps // 2}: -> {losses(resumed)[-1]:.6g}")


if __name__ == "__main__":
    main()
