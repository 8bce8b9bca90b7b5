"""instructor: an object that follows a schema, by JSON schema and by a tool call."""

import enum
import sys

import instructor
import openai
import pydantic

url, model, key = sys.argv[1:]


class Colour(enum.Enum):
    red = "red"
    green = "green"
    blue = "blue"


class Paint(pydantic.BaseModel):
    colour: Colour
    shiny: bool


for mode in [instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS]:
    client = instructor.from_openai(openai.OpenAI(base_url=url, api_key=key, max_retries=0), mode=mode)
    # A model of random weights would put white space between the tokens for ever; a long answer is cut at its end.
    paint = client.chat.completions.create(
        model=model, response_model=Paint, max_retries=0, max_tokens=400, temperature=1.0, seed=3,
        messages=[{"role": "user", "content": "Name a paint."}],
    )  # fmt: skip
    assert isinstance(paint, Paint), paint
