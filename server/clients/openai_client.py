"""The official `openai` client against `tilewright serve`: every call must answer as said here, or the script fails.

    pip install openai
    tilewright serve --port 8000                                    # the demo model
    tilewright serve --port 8001 -m tests/fixtures/bert --name bert # a BERT-like model of random weights
    python server/clients/openai_client.py http://127.0.0.1:8000/v1 http://127.0.0.1:8001/v1

The second address may be left out; embeddings are skipped then, and said to be.
"""

import math
import sys

import openai

MODEL = "tilewright-demo"
PROMPT = "fn main() {\n    let mut v = Vec::new();\n"
CHAT = [{"role": "user", "content": "fn main() {"}]


def check(name, is_so, found):
    """Prints what was found, and ends the script where it isn't as expected."""
    print(f"{name}: {found!r}")
    if not is_so:
        sys.exit(f"FAILED: {name}")


def refused(name, error, param, call):
    try:
        call()
    except error as refusal:
        body = refusal.body or {}
        check(name, body.get("param") == param, body.get("message"))
    else:
        sys.exit(f"FAILED: {name} was taken")


def models(client):
    names = [model.id for model in client.models.list()]
    check("models", MODEL in names, names)


def chat(client):
    ask = {"model": MODEL, "messages": CHAT, "max_tokens": 16, "temperature": 0}
    whole = client.chat.completions.create(**ask)
    text = whole.choices[0].message.content
    check("chat", len(text) > 0 and whole.usage.completion_tokens <= 16, text)
    again = client.chat.completions.create(**ask)
    check("chat again", again.choices[0].message.content == text, again.choices[0].finish_reason)

    parts, usage = [], None
    for chunk in client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        parts += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    check("chat streamed", "".join(parts) == text, f"{len(parts)} parts, the same text")
    check("usage at the end", usage == whole.usage, usage.total_tokens)

    told = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    likeliest = all(one.top_logprobs[0].token == one.token for one in told)
    check("chat logprobs", likeliest and len(told) == whole.usage.completion_tokens, round(told[0].logprob, 4))


def completions(client):
    ask = {"model": MODEL, "max_tokens": 8, "temperature": 0}
    one = client.completions.create(**ask, prompt=PROMPT).choices[0].text
    both = client.completions.create(**ask, prompt=[PROMPT, "use std::"]).choices
    check("completions", both[0].text == one, [choice.text for choice in both])
    streamed = client.completions.create(**ask, prompt=PROMPT, stream=True)
    check("completion streamed", "".join(part.choices[0].text for part in streamed) == one, one)
    stopped = client.completions.create(**ask, prompt=PROMPT, stop=["fn"]).choices[0]
    check("stop", stopped.text == one.split("fn")[0] and stopped.finish_reason == "stop", stopped.text)

    echo = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=0, echo=True, logprobs=1).choices[0]
    known = echo.logprobs.token_logprobs
    check("echo", echo.text == PROMPT and known[0] is None and all(p <= 0 for p in known[1:]), round(sum(known[1:]), 4))

    ask = {"model": MODEL, "prompt": [[0, 12, 7]], "max_tokens": 8, "n": 3, "seed": 7, "temperature": 1.0}
    drawn = [choice.text for choice in client.completions.create(**ask).choices]
    again = [choice.text for choice in client.completions.create(**ask).choices]
    check("n and seed", drawn == again and len(set(drawn)) > 1, drawn)
    forced = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=3, logit_bias={"12": 100}, logprobs=1)
    tokens = forced.choices[0].logprobs.tokens
    check("logit_bias", len(set(tokens)) == 1, tokens)


def refusals(client):
    ask = {"model": MODEL, "prompt": "a", "max_tokens": 1}
    bad = openai.BadRequestError
    create = client.completions.create
    refused("temperature 9", bad, "temperature", lambda: create(**{**ask, "temperature": 9}))
    refused("n of 10^9", bad, "n", lambda: create(**{**ask, "n": 10**9}))
    refused("max_tokens over the context", bad, "max_tokens", lambda: create(**{**ask, "max_tokens": 10**6}))
    refused("another model", openai.NotFoundError, "model", lambda: create(**{**ask, "model": "other"}))
    chat = client.chat.completions.create
    tool = {"type": "function", "function": {"name": "f"}}
    refused("no messages", bad, "messages", lambda: chat(model=MODEL, messages=[]))
    refused("tools", bad, "tools", lambda: chat(model=MODEL, messages=CHAT, tools=[tool]))
    form = {"type": "json_object"}
    refused("response_format", bad, "response_format", lambda: chat(model=MODEL, messages=CHAT, response_format=form))
    refused("embeddings of a decoder", bad, "model", lambda: client.embeddings.create(model=MODEL, input="a"))


def embeddings(client):
    """The client asks for base64 by itself; `float` must say the same."""
    texts = [[2, 17, 5, 3], [2, 9, 3]]
    packed = client.embeddings.create(model="bert", input=texts)
    plain = client.embeddings.create(model="bert", input=texts, encoding_format="float")
    close = all(
        math.isclose(x, y, abs_tol=1e-6)
        for one, other in zip(packed.data, plain.data)
        for x, y in zip(one.embedding, other.embedding)
    )
    length = math.sqrt(sum(x * x for x in packed.data[0].embedding))
    check("embeddings", close and len(packed.data) == 2, (len(packed.data[0].embedding), round(length, 4)))
    check("tokens counted", packed.usage.prompt_tokens == 7, packed.usage.prompt_tokens)
    alone = client.embeddings.create(model="bert", input=texts[:1]).data[0].embedding
    check("alone as beside another", alone == packed.data[0].embedding, alone[0])


def main(addresses):
    client = openai.OpenAI(base_url=addresses[0], api_key="none", max_retries=0)
    print(f"openai {openai.__version__}")
    models(client)
    chat(client)
    completions(client)
    refusals(client)
    if len(addresses) > 1:
        embeddings(openai.OpenAI(base_url=addresses[1], api_key="none", max_retries=0))
    else:
        print("embeddings: SKIPPED, no second address")
    print("all as expected")


main(sys.argv[1:] or ["http://127.0.0.1:8000/v1"])
