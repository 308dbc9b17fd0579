// Three ways to divide a batch, none of which changes a bit of the result:
//
// - many texts: each task takes whole texts through all layers, and nobody waits for anybody;
// - few texts: each task takes a part of the rows, and all meet once a layer, since keys and values are everybody's;
// - few rows: each task takes a part of the heads and columns, so that every weight is read by one processor only. All
//   meet six times a layer.
#include "encoder.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

namespace e5onnx {
namespace {

constexpr int kColumnRows = 64;  // most rows that are divided by columns: 40 in bfloat16 take 2.2 ms, by rows 2.7
constexpr int kChunkRows = 512;  // rows of a task with whole texts: their hidden states stay in its cache
constexpr int kBlockRows = 96;   // rows of the feed-forward layer: its inner activations stay in the cache, too
static_assert(kColumnRows <= kBlockRows, "a task's scratch holds so many rows");
constexpr int kSharedRows = 1 << 15;

struct Span {
  int begin, end;
};
// Part `number` of `count`, in whole units.
Span part(int total, int unit, int number, int count) {
  const int units = (total + unit - 1) / unit;
  const auto end = [&](int n) {
    return std::min(total, static_cast<int>(static_cast<long>(units) * n / count) * unit);
  };
  return {end(number), end(number + 1)};
}

Activations from_row(const Kernels& kernels, Activations x, long row, int columns) {
  return {static_cast<char*>(x.values) + row * columns * static_cast<long>(kernels.activation_bytes),
          x.ranges ? x.ranges + row : nullptr};
}

Activations take_activations(const Kernels& kernels, Cutter& cutter, size_t rows, int columns) {
  Activations x{};
  x.values = cutter.take<char>(rows * static_cast<size_t>(columns) * kernels.activation_bytes);
  x.ranges = cutter.take<Range>(rows);
  if (!kernels.quantize) x.ranges = nullptr;
  return x;
}

}  // namespace

// What is kept of each row between two steps.
struct Encoder::Rows {
  float* hidden;
  Activations input;
  char* elements[2];  // queries, keys and values of this layer and the next, which some tasks begin early
  char* context;      // the output of attention

  Rows(const Model& model, const Kernels& kernels, Cutter& cutter, size_t rows, int layers_at_once) {
    const size_t hidden_size = static_cast<size_t>(model.hidden);
    hidden = cutter.take<float>(rows * hidden_size);
    input = take_activations(kernels, cutter, rows, model.hidden);
    for (int i = 0; i < 2; i++)
      elements[i] = i < layers_at_once ? cutter.take<char>(rows * 3 * hidden_size * kernels.element_bytes) : nullptr;
    context = cutter.take<char>(rows * hidden_size * kernels.middle_bytes);
  }
};

// What a task needs for itself.
struct Encoder::Scratch {
  char* attention;
  float* sums;                      // outputs of a linear layer
  char* middle;                     // outputs of the activation function
  Activations attended, activated;  // both, quantised

  Scratch(const Model& model, const Kernels& kernels, Cutter& cutter, int rows, int keys) {
    const auto count = static_cast<size_t>(rows);
    attention = cutter.take<char>(kernels.attention_bytes(keys, model.head_size));
    sums = cutter.take<float>(count * static_cast<size_t>(model.hidden));
    middle = cutter.take<char>(count * static_cast<size_t>(model.feed_forward) * kernels.middle_bytes);
    attended = activated = {};
    if (kernels.quantize) {
      attended = take_activations(kernels, cutter, count, model.hidden);
      activated = take_activations(kernels, cutter, count, model.feed_forward);
    }
  }
};

// One call of `Encoder::run`.
class Encoder::Run {
 public:
  Run(const Encoder& encoder, const Batch& batch, float* output)
      : model_(encoder.model_), kernels_(encoder.kernels_), batch_(batch), output_(output) {
    for (const auto& text : batch.texts) longest_ = std::max(longest_, text.rows);
  }

  Rows cut_rows(Cutter& cutter, size_t rows, int layers_at_once) const {
    return Rows(model_, kernels_, cutter, rows, layers_at_once);
  }
  Scratch cut_scratch(Cutter& cutter) const { return Scratch(model_, kernels_, cutter, kBlockRows, longest_); }

  // Texts [begin, end) from the first layer to the last.
  void whole_texts(Span texts, const Rows& rows, const Scratch& scratch) const {
    const int base = batch_.texts[static_cast<size_t>(texts.begin)].first;
    const auto& last = batch_.texts[static_cast<size_t>(texts.end - 1)];
    const Span all{0, last.first + last.rows - base};
    embed(rows, base, all);
    for (const Layer& layer : model_.layers) {
      project(layer, rows, rows.elements[0], all);
      attend(texts, rows, rows.elements[0], base, {base, base + all.end}, {0, model_.heads}, scratch);
      finish_layer(layer, rows, all, scratch);
    }
    write(rows, base, all);
  }

  // Step `step` of the rows of a task: embeddings and the first projection, then layer after layer.
  void some_rows(size_t step, Span span, const Rows& rows, const Scratch& scratch) const {
    if (span.begin == span.end) return;
    if (step == 0) {
      embed(rows, 0, span);
    } else {
      attend(all_texts(), rows, rows.elements[(step - 1) % 2], 0, span, {0, model_.heads}, scratch);
      finish_layer(model_.layers[step - 1], rows, span, scratch);
    }
    if (step < model_.layers.size())
      project(model_.layers[step], rows, rows.elements[step % 2], span);
    else
      write(rows, 0, span);
  }

  // Step `step` of a task that computes a part of the columns: one for the embeddings, six for each layer. What all
  // tasks write to is in `rows` and `shared`.
  static constexpr size_t kColumnSteps = 6;
  void some_columns(size_t step, int task, int tasks, const Rows& rows, const Scratch& shared,
                    const Scratch& own) const {
    const int count = static_cast<int>(batch_.ids.size()), hidden = model_.hidden, inner = model_.feed_forward;
    const Span mine = part(count, 1, task, tasks);
    if (step == 0) return embed(rows, 0, mine);
    const Layer& layer = model_.layers[(step - 1) / kColumnSteps];
    const Span columns = part(hidden, kernels_.columns, task, tasks);
    const Span panels{columns.begin / kernels_.columns, columns.end / kernels_.columns};
    switch ((step - 1) % kColumnSteps) {
      case 0: {
        const Span part_of_heads = part(hidden, std::max(kernels_.columns, model_.head_size), task, tasks);
        const int first = part_of_heads.begin / kernels_.columns, last = part_of_heads.end / kernels_.columns;
        for (int kind = 0; kind < 3; kind++) {
          const int before = kind * hidden / kernels_.columns;
          kernels_.project(rows.input, count, hidden, layer.query_key_value, before + first, before + last,
                           rows.elements[0], 3L * hidden);
        }
        return attend(all_texts(), rows, rows.elements[0], 0, {0, count},
                      {part_of_heads.begin / model_.head_size, part_of_heads.end / model_.head_size}, own);
      }
      case 1:
        if (panels.begin == panels.end) return;
        return kernels_.multiply(quantized(rows.context, count, hidden, own.attended), count, hidden,
                                 layer.attention_output, panels.begin, panels.end, shared.sums, hidden);
      case 2:
        return add_norm(shared.sums + static_cast<long>(mine.begin) * hidden, layer.attention_norm, rows, mine);
      case 3: {
        const Span inner_columns = part(inner, kernels_.columns, task, tasks);
        return kernels_.activate(rows.input, count, hidden, layer.intermediate, model_.activation,
                                 layer.activated_smoothing, inner_columns.begin / kernels_.columns,
                                 inner_columns.end / kernels_.columns, shared.middle, inner);
      }
      case 4:
        if (panels.begin == panels.end) return;
        return kernels_.multiply(quantized(shared.middle, count, inner, own.activated), count, inner, layer.output,
                                 panels.begin, panels.end, shared.sums, hidden);
      default:
        add_norm(shared.sums + static_cast<long>(mine.begin) * hidden, layer.output_norm, rows, mine);
        if (step == model_.layers.size() * kColumnSteps) write(rows, 0, mine);
    }
  }

 private:
  // `base` is the row of the batch that is row 0 of `rows`; spans are of `rows`.
  void embed(const Rows& rows, int base, Span span) const {
    kernels_.embed(model_, batch_.ids.data() + base + span.begin, batch_.positions.data() + base + span.begin,
                   span.end - span.begin, rows.hidden + static_cast<long>(span.begin) * model_.hidden,
                   from_row(kernels_, rows.input, span.begin, model_.hidden));
  }

  void project(const Layer& layer, const Rows& rows, char* elements, Span span) const {
    const long stride = 3L * model_.hidden;
    kernels_.project(from_row(kernels_, rows.input, span.begin, model_.hidden), span.end - span.begin, model_.hidden,
                     layer.query_key_value, 0, 3 * model_.hidden / kernels_.columns,
                     elements + span.begin * stride * static_cast<long>(kernels_.element_bytes), stride);
  }

  Span all_texts() const { return {0, static_cast<int>(batch_.texts.size())}; }

  // Attention of some heads, for those queries of the texts that are in rows [span) of the batch.
  void attend(Span texts, const Rows& rows, const char* elements, int base, Span span, Span heads,
              const Scratch& scratch) const {
    if (heads.begin == heads.end) return;
    for (int number = texts.begin; number < texts.end; number++) {
      const auto& text = batch_.texts[static_cast<size_t>(number)];
      const int begin = std::max(span.begin, text.first), end = std::min(span.end, text.first + text.rows);
      if (begin >= end) continue;
      const long first = text.first - base;
      kernels_.attend(
          model_, elements + first * 3 * model_.hidden * static_cast<long>(kernels_.element_bytes),
          batch_.places.data() + text.first, text.keys, begin - text.first, end - text.first, heads.begin, heads.end,
          scratch.attention,
          rows.context + (begin - base) * static_cast<long>(model_.hidden) * static_cast<long>(kernels_.middle_bytes));
    }
  }

  // All of a layer that comes after attention.
  void finish_layer(const Layer& layer, const Rows& rows, Span span, const Scratch& scratch) const {
    const int hidden = model_.hidden, inner = model_.feed_forward, count = span.end - span.begin;
    const int blocks = (count + kBlockRows - 1) / kBlockRows;
    for (int block = 0; block < blocks; block++) {
      Span some = part(count, 1, block, blocks);
      some = {some.begin + span.begin, some.end + span.begin};
      const int n = some.end - some.begin;
      const Activations input = from_row(kernels_, rows.input, some.begin, hidden);
      char* context = rows.context + static_cast<long>(some.begin) * hidden * static_cast<long>(kernels_.middle_bytes);
      kernels_.multiply(quantized(context, n, hidden, scratch.attended), n, hidden, layer.attention_output, 0,
                        hidden / kernels_.columns, scratch.sums, hidden);
      add_norm(scratch.sums, layer.attention_norm, rows, some);
      kernels_.activate(input, n, hidden, layer.intermediate, model_.activation, layer.activated_smoothing, 0,
                        inner / kernels_.columns, scratch.middle, inner);
      kernels_.multiply(quantized(scratch.middle, n, inner, scratch.activated), n, inner, layer.output, 0,
                        hidden / kernels_.columns, scratch.sums, hidden);
      add_norm(scratch.sums, layer.output_norm, rows, some);
    }
  }

  Activations quantized(char* values, int rows, int columns, Activations to) const {
    if (!kernels_.quantize) return {values, nullptr};
    kernels_.quantize(values, rows, columns, to);
    return to;
  }

  // `sums` begins with the first row of the span.
  void add_norm(const float* sums, const Norm& norm, const Rows& rows, Span span) const {
    const long at = static_cast<long>(span.begin) * model_.hidden;
    kernels_.add_norm(sums, span.end - span.begin, model_.hidden, norm, model_.epsilon, rows.hidden + at,
                      from_row(kernels_, rows.input, span.begin, model_.hidden));
  }

  void write(const Rows& rows, int base, Span span) const {
    const auto hidden = static_cast<size_t>(model_.hidden);
    for (int row = span.begin; row < span.end; row++)
      std::memcpy(output_ + static_cast<size_t>(batch_.outputs[static_cast<size_t>(base + row)]) * hidden,
                  rows.hidden + static_cast<size_t>(row) * hidden, hidden * sizeof(float));
  }

  const Model& model_;
  const Kernels& kernels_;
  const Batch& batch_;
  float* output_;
  int longest_ = 0;
};

void Encoder::run(const Batch& batch, const Parallel& parallel, float* output) {
  const int count = static_cast<int>(batch.ids.size()), texts = static_cast<int>(batch.texts.size());
  if (count == 0) return;
  const Run run(*this, batch, output);
  const auto tasks = static_cast<size_t>(threads_);
  const auto in_parallel = [&](auto&& task) {
    if (tasks == 1) return task(size_t{0});
    parallel.run(tasks, [](void* data, size_t number) { (*static_cast<decltype(&task)>(data))(number); }, &task);
  };
  const bool shared = threads_ > 1 && (texts < 2 * threads_ || count < 64 * threads_) && count <= kSharedRows;

  std::vector<int> ends{0};  // of the texts of each chunk
  int most = count;
  if (!shared) {
    most = 0;
    int first = 0;
    for (int text = 1; text <= texts; text++) {
      const int end = text < texts ? batch.texts[static_cast<size_t>(text)].first : count;
      const int next = text < texts ? end + batch.texts[static_cast<size_t>(text)].rows : 0;
      // Smaller ones towards the end, so that the tasks end together.
      const int wanted = std::clamp((count - first) / (2 * threads_), kBlockRows, kChunkRows);
      if (text == texts || next - first > wanted) {
        ends.push_back(text);
        most = std::max(most, end - first);
        first = end;
      }
    }
  }

  Cutter rows_size, scratch_size;
  run.cut_rows(rows_size, static_cast<size_t>(most), shared ? 2 : 1);
  run.cut_scratch(scratch_size);
  auto blocks = pool_.borrow(tasks);
  std::vector<Rows> rows;
  std::vector<Scratch> scratches;
  for (size_t task = 0; task < tasks; task++) {
    const bool has_rows = task == 0 || !shared;
    Cutter cutter(blocks[task]->reserve(scratch_size.bytes() + (has_rows ? rows_size.bytes() : 0)));
    scratches.push_back(run.cut_scratch(cutter));
    if (has_rows) rows.push_back(run.cut_rows(cutter, static_cast<size_t>(most), shared ? 2 : 1));
  }

  if (!shared) {
    std::atomic<size_t> next{0};
    in_parallel([&](size_t task) {
      for (size_t chunk; (chunk = next.fetch_add(1)) + 1 < ends.size();)
        run.whole_texts({ends[chunk], ends[chunk + 1]}, rows[task], scratches[task]);
    });
  } else if (count <= kColumnRows) {
    for (size_t step = 0; step <= model_.layers.size() * Run::kColumnSteps; step++)
      in_parallel([&](size_t task) {
        run.some_columns(step, static_cast<int>(task), threads_, rows[0], scratches[0], scratches[task]);
      });
  } else {
    for (size_t step = 0; step <= model_.layers.size(); step++)
      in_parallel([&](size_t task) {
        run.some_rows(step, part(count, 6, static_cast<int>(task), threads_), rows[0], scratches[task]);
      });
  }
  pool_.give_back(std::move(blocks));
}

}  // namespace e5onnx
