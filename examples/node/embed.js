// Use a model folder in Node: onnxruntime-node and Hugging Face's tokenizers.
//
//   npm install --ignore-scripts          (the scripts would download libraries for GPUs)
//   node embed.js MODEL [TEXT ...]
//
// Pooling and normalisation are in the graph. Prints the vectors of the texts, as documents, as one JSON array.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Tokenizer } from "@huggingface/tokenizers";
import { InferenceSession, Tensor } from "onnxruntime-node";

const [folder, ...given] = process.argv.slice(2);
const texts = given.length ? given : ["A summit is the topmost point of a mountain.", "46 grams of protein a day"];
const read = (name) => JSON.parse(readFileSync(join(folder, name), "utf8"));
const { max_tokens: maxTokens, prompts } = read("e5onnx.json");
const tokenizer = new Tokenizer(read("tokenizer.json"), read("tokenizer_config.json"));
const session = await InferenceSession.create(join(folder, "onnx", "model.onnx"));

function tokenIds(text, promptName) {
  if (Object.keys(prompts).length && !(promptName in prompts)) throw new Error(`the model has no prompt ${promptName}`);
  const { ids } = tokenizer.encode((prompts[promptName] ?? "") + text);
  if (ids.length <= maxTokens) return ids;
  console.error(`cut to ${maxTokens} tokens: ${text.slice(0, 40)}`);
  return [...ids.slice(0, maxTokens - 1), ids.at(-1)]; // with the token that ends every text
}

async function embed(text, promptName) {
  const ids = tokenIds(text, promptName);
  const row = (values) => new Tensor("int64", BigInt64Array.from(values, BigInt), [1, ids.length]);
  const feeds = { input_ids: row(ids), attention_mask: row(ids.map(() => 1)) };
  const { sentence_embedding: vector } = await session.run(feeds, ["sentence_embedding"]);
  return Array.from(vector.data);
}

const vectors = [];
for (const text of texts) vectors.push(await embed(text, "document"));
console.log(JSON.stringify(vectors));
