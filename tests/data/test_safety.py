import random

import pytest

from openafm.data import safety

WORDS = safety.load_words()


@pytest.mark.parametrize(
    "text",
    [
        "what the fuck is this shit",
        "f*cking sh1t, you b1tch",
        "fuuuuck you, s h i t",
        "ｆｕｃｋ this shіt",
        "f​uck you, shit",
    ],
)
def test_profanity_is_seen_through_disguise(text):
    assert safety.judge_words(text, WORDS).category == "profanity"


def test_categories():
    assert safety.judge_words("hot milf porn video, big tits", WORDS).category == "adult"
    assert safety.judge_words("how to make a bomb at home", WORDS).category == "unsafe"


@pytest.mark.parametrize(
    "text",
    [
        "kill the child process, then assess the class",
        "Scunthorpe, cocktail, analysis, Essex",
        "x86, b2b, a55, 3d, s3, 4k",
        "**kwargs",
    ],
)
def test_plain_words_stay(text):
    assert safety.judge_words(text, WORDS).category == ""


def test_one_bad_word_in_a_long_text_stays():
    assert (
        safety.judge_words("This is a sentence about shit. " + "Plain words follow here. " * 200, WORDS).category == ""
    )


def test_a_foreign_list_weighs_less_and_technical_words_are_taken_out(tmp_path):
    (tmp_path / "profanity.txt").write_text("kill\nblorfing\n")
    words = safety.load_words(tmp_path)
    assert "kill" not in words.single and words.single["blorfing"] == ("profanity", safety.LISTED_WEIGHT)
    assert words.single["fuck"] == ("profanity", 1.0)


def labelled() -> list[safety.Example]:
    draw = random.Random(0)
    clean = [
        " ".join(draw.choices(["tree", "river", "stone", "walks", "slowly", "under", "the", "morning", "light"], k=60))
        for _ in range(80)
    ]
    rude = [
        "you stupid " + " ".join(draw.choices(["fucking", "shit", "asshole", "idiot", "moron", "loser"], k=58))
        for _ in range(40)
    ]
    return safety.examples(rude, clean, WORDS, draw)


def test_the_model_learns_the_company_of_bad_words_and_repeats_itself(tmp_path):
    listed = labelled()
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    path, agreement = safety.train(listed, tmp_path / "a", 1)
    again, _ = safety.train(listed, tmp_path / "b", 1)
    assert path.read_bytes() == again.read_bytes()
    assert agreement.accuracy > 0.9 and agreement.chunks == len(listed) // 5
    model = safety.SafetyModel(path)
    assert model.score("idiot moron loser " * 20)[0] > 0.5 > model.score("slowly the river under the tree " * 10)[0]
    assert model.score("")[0] == 0
