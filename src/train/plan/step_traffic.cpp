#include "train/plan/step_traffic.hpp"

#include <algorithm>
#include <numeric>
#include <optional>

#include "moe/routing.hpp"
#include "optimizer/piece_exchange.hpp"
#include "train/trainer.hpp"

namespace flanmoe {
namespace {

Tensor not_there(DType dtype, std::int64_t rows, std::int64_t cols) { return {nullptr, dtype, 1, rows, cols, cols}; }

bool trains(const ParameterStore& store, const std::string& prefix) {
  return std::any_of(store.specs().begin(), store.specs().end(), [&](const ParameterSpec& spec) {
    return spec.trained && (spec.name.starts_with(prefix) || spec.name == "embedding");
  });
}

/// The sparse layers of one stack: counts, rows to the experts and back, and the same for the gradients.
void route(const Deck& deck, const ParameterStore& store, bool encoder, const RankRows& rows, int world_size,
           const Communicator& expert_group) {
  const std::int64_t layers = sparse_layers(deck.moe, encoder ? deck.moe.encoder : deck.moe.decoder,
                                            encoder ? deck.model.encoder_layers : deck.model.decoder_layers);
  if (layers == 0 || expert_group.size() == 1) return;
  const auto ranks = std::size_t(expert_group.size());
  const std::size_t local = std::size_t(deck.moe.experts) / ranks;
  const auto chunks = std::size_t(dispatch_chunks(deck, expert_group.size()));
  const std::int64_t moves = 2 + (!encoder || trains(store, "encoder/") ? 2 : 0);
  for (std::int64_t first = rows.first; first < rows.first + rows.rows; first += rows.microbatch) {
    const std::vector<std::int64_t> copies = even_copies(deck, encoder, first, rows.microbatch);
    const std::int64_t leaves = uses_leaves(deck, world_size) ? leaves_of(deck) * rows.microbatch / deck.batch.rows : 1;
    std::vector<std::int64_t> sent(copies.size() * std::size_t(leaves)), received(sent.size());
    // Of each chunk, what goes to each rank.
    std::vector<std::vector<RowRange>> to(chunks, std::vector<RowRange>(ranks));
    for (std::size_t e = 0; e < copies.size(); ++e) {
      std::size_t chunk = 0;
      while (e % local >= (chunk + 1) * local / chunks) ++chunk;
      to[chunk][e / local].count += copies[e];
    }
    const Tensor send =
        not_there(store.compute(), std::accumulate(copies.begin(), copies.end(), std::int64_t{0}), deck.model.width);
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      expert_group.all_to_all<std::int64_t>(received, sent);
      for (std::int64_t move = 0; move < moves; ++move) {
        for (const auto& rows : to) expert_group.start_all_to_all_rows(send, rows, send, rows).finish();
      }
    }
  }
}

/// Of the matrices with several owners; see BlockUpdates.
void exchange_sums(const Communicator& replicas, const ParameterStore& store, const PieceExchange& exchange) {
  if (!exchange.needed()) return;
  const auto width = [&](int parameter) { return parameter < 0 ? 0 : store.specs()[std::size_t(parameter)].cols + 2; };
  const std::int64_t home_width = width(exchange.home_parameter()), guest_width = width(exchange.guest_parameter());
  PieceExchange::Counts counts;
  for (const bool of_update : {false, true}) {
    const std::int64_t home = of_update ? 1 : home_width, guest = of_update ? 1 : guest_width;
    exchange.gather(replicas, counts, not_there(DType::f64, exchange.home_blocks(), home),
                    not_there(DType::f64, exchange.guest_blocks(), guest));
    exchange.spread(replicas, counts, not_there(DType::f64, exchange.guests(), home),
                    not_there(DType::f64, exchange.guest_blocks() > 0 ? 1 : 0, guest));
  }
}

/// Statistics, work and the wish to stop; see Trainer::step.
std::size_t numbers_of_step(const Deck& deck) {
  const std::int64_t layers = sparse_layers(deck.moe, deck.moe.encoder, deck.model.encoder_layers) +
                              sparse_layers(deck.moe, deck.moe.decoder, deck.model.decoder_layers);
  StepStatistics statistics;
  statistics.moe.resize(std::size_t(layers));
  for (MoeLayerStatistics& layer : statistics.moe) layer.load_E.resize(std::size_t(deck.moe.experts));
  return statistics.pack().size() + WorkCounts::kNumbers + 1;
}

}  // namespace

Traffic StepTraffic::total() const {
  Traffic sum = world;
  sum += data;
  sum += expert;
  return sum;
}

std::int64_t full_row_tokens(const Deck& deck, bool encoder) {
  if (deck.model.decoder_only()) return encoder ? 0 : deck.batch.input_length + deck.batch.target_length;
  return encoder ? deck.batch.input_length : deck.batch.target_length;
}

std::vector<std::int64_t> even_copies(const Deck& deck, bool encoder, std::int64_t first_row, std::int64_t rows) {
  const MoeDeck& moe = deck.moe;
  const Routing routing = routing_of(moe, encoder);
  const std::int64_t tokens = full_row_tokens(deck, encoder);
  std::vector<std::int64_t> copies(std::size_t(moe.experts), 0);
  for (std::int64_t r = 0; r < rows; r += moe.group_rows) {
    const std::int64_t group = std::min(moe.group_rows, rows - r);
    const std::int64_t capacity = expert_capacity(moe, routing, /*training=*/true, group * tokens);
    std::vector<std::int64_t> claims(copies.size(), routing.expert_choice ? group * tokens : 0);
    if (!routing.expert_choice) {
      const std::int64_t kept = moe.second_policy == "none" ? 1 : moe.top_k;
      for (std::int64_t row = first_row + r; row < first_row + r + group; ++row) {
        for (std::int64_t p = 0; p < tokens; ++p) {
          for (std::int64_t j = 0; j < kept; ++j) claims[std::size_t((row + p * moe.top_k + j) % moe.experts)] += 1;
        }
      }
    }
    for (std::size_t e = 0; e < copies.size(); ++e) copies[e] += std::min(claims[e], capacity);
  }
  return copies;
}

StepTraffic plan_traffic(const Deck& deck, const ProcessGrid& grid, const ParameterStore& store) {
  const Communicators ranks = Communicators::imagined(grid);
  const RankRows rows = RankRows::of(deck, grid);
  for (const bool encoder : {true, false}) route(deck, store, encoder, rows, grid.world_size(), ranks.expert);

  // Loss, gradients, norm, weights; see Trainer::step and Optimizer::step.
  std::vector<double> numbers(numbers_of_step(deck));
  ranks.world.sum_tree(numbers);
  const DType accumulate = accumulate_dtype(store.compute());
  const auto replicas = [&](Placement placement) -> const Communicator& {
    return placement == Placement::dense ? ranks.world : ranks.data;
  };
  // Calls f(replica group, gradients of a bucket, segments of its owners).
  const auto for_buckets = [&](Placement placement, auto&& f) {
    for (std::int64_t bucket = 0; bucket < store.buckets(); ++bucket) {
      const std::int64_t size = store.bucket_size(placement, bucket);
      if (size > 0) f(replicas(placement), not_there(accumulate, 1, size), store.segment_sizes(placement, bucket));
    }
  };
  for (const Placement placement : {Placement::dense, Placement::expert}) {
    for_buckets(placement, [&](const Communicator& group, const Tensor& flat, const auto& sizes) {
      group.reduce_scatter_tree(flat, sizes,
                                not_there(accumulate, 1, Communicator::reduce_scatter_work(sizes, accumulate)));
    });
  }
  const std::optional<GradientSums> sums = leaf_sums(deck, grid);
  if (sums && sums->table >= 0 && store.trained(sums->table)) {
    const std::int64_t cols = store.specs()[std::size_t(sums->table)].cols;
    std::vector<std::int64_t> sizes(std::size_t(store.replica_size(Placement::dense)), 0);
    for (const ParameterUnit& unit : store.units(Placement::dense)) {
      if (unit.parameter == sums->table) sizes[std::size_t(unit.owner)] += unit.rows * cols;
    }
    const std::int64_t size = store.specs()[std::size_t(sums->table)].matrix_size();
    const Tensor work = not_there(accumulate, 1, Communicator::reduce_scatter_work(sizes, accumulate));
    ranks.world.reduce_scatter_tree(not_there(accumulate, 1, size), sizes, work);
  }
  std::size_t squares = 0;
  for (const ParameterSpec& spec : store.specs()) squares += std::size_t(spec.experts * spec.blocks());
  numbers.resize(squares);
  ranks.world.all_reduce(std::span(numbers), ReduceOp::sum);
  if (deck.optimizer.name == "adafactor") {
    for (std::int64_t bucket = 0; bucket < store.buckets(); ++bucket) {
      for (const Placement placement : {Placement::dense, Placement::expert}) {
        exchange_sums(replicas(placement), store, PieceExchange(store, placement, bucket));
      }
    }
  }
  for (const Placement placement : {Placement::dense, Placement::expert}) {
    if (store.replica_size(placement) == 1) continue;
    for_buckets(placement, [](const Communicator& group, const Tensor& flat, const auto& sizes) {
      group.all_gather_segments(flat, sizes);
    });
  }
  return {ranks.world.traffic(), ranks.data.traffic(), ranks.expert.traffic()};
}

}  // namespace flanmoe
