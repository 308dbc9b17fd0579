"""Embeddings from an asynchronous FastAPI service of your own.

pip install e5onnx fastapi uvicorn
python fastapi_service.py MODEL [PORT]

`aencode_query` runs the model in a thread, so that the event loop stays free. You need not write a service that only
serves embeddings: `e5onnx serve` does that, and also batches the requests of different clients.
"""

import asyncio
import sys

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from e5onnx import Encoder, TextTooLongError


class SearchRequest(BaseModel):
    """A question."""

    question: str = Field(max_length=10_000)
    limit: int = Field(default=3, ge=1, le=100)


class Hit(BaseModel):
    """A passage that was found."""

    passage: str
    score: float


PASSAGES = [
    "Women aged 19 to 70 should eat about 46 grams of protein a day.",
    "A summit is the topmost point of a mountain.",
    "Heads of state from eight countries met in Geneva.",
    "Bread dough rises because yeast makes carbon dioxide.",
]
encoder = Encoder(sys.argv[1])
vectors = encoder.encode_document(PASSAGES)
app = FastAPI()
running = asyncio.Semaphore(2)  # calls that run side by side; one call already uses all processors


@app.post("/search")
async def search(request: SearchRequest) -> list[Hit]:
    """Return the passages that answer a question best."""
    async with running:
        try:
            query = await encoder.aencode_query(request.question, truncate="error")
        except TextTooLongError as error:
            raise HTTPException(422, str(error)) from error
    scores = vectors @ query
    return [Hit(passage=PASSAGES[i], score=float(scores[i])) for i in np.argsort(-scores)[: request.limit]]


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]) if len(sys.argv) > 2 else 8000)
