"""The family's character-level tokenizer, and the same encoding of whole batches as tensors."""

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from evomerge.zoo.tasks import LETTERS, TASKS, WORD_LENGTH, ToyTask

PAD, EOS, UNKNOWN, EQUALS = "<pad>", "<eos>", "<unk>", "="
_TOKENS = (PAD, EOS, UNKNOWN, EQUALS, *(task.tag for task in TASKS.values()), *LETTERS)
VOCABULARY = {token: number for number, token in enumerate(_TOKENS)}
PAD_ID, EOS_ID = VOCABULARY[PAD], VOCABULARY[EOS]

PROMPT_LENGTH = WORD_LENGTH + 2  # tag, word, equals sign
ANSWER_LENGTH = WORD_LENGTH + 1  # word, end of sequence
MAX_LENGTH = 64


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Tags and single characters are tokens, nothing is added, and no merge spans two of them.

    So the tokens of prompt + answer are the tokens of the prompt, then the tokens of the answer.
    """
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\[[a-z]+\]|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def encode(task: ToyTask, words: Tensor) -> Tensor:
    """Whole sequences: tag, word, equals sign, answer, end of sequence."""
    first = VOCABULARY[LETTERS[0]]

    def column(token: int) -> Tensor:
        return torch.full((len(words), 1), token)

    return torch.cat(
        [
            column(VOCABULARY[task.tag]),
            words + first,
            column(VOCABULARY[EQUALS]),
            task.answer(words) + first,
            column(EOS_ID),
        ],
        dim=1,
    )
