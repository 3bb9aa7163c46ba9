#include "stage/start.hpp"

#include <omp.h>

#include <algorithm>
#include <cstdlib>

#include "base/error.hpp"
#include "base/host.hpp"
#include "base/log.hpp"
#include "model/freeze.hpp"
#include "parallel/together.hpp"
#include "tensor/philox.hpp"
#include "train/plan/calibrate.hpp"
#include "train/resources.hpp"
#include "train/run_folder.hpp"

namespace flanmoe {

Deck agree_on_deck(const Arguments& arguments, const Communicator& world) {
  Deck deck;
  on_root(world, [&] {
    deck = parse_deck(arguments.deck, arguments.overrides);
    check_deck(deck, world.size(), freeze_problems(deck));
  });
  together(world, [&] {
    if (world.rank() != 0) deck = parse_deck(arguments.deck, arguments.overrides);
  });
  const std::vector<std::uint64_t> hashes = world.all_gather(hash_deck(deck));
  const auto other = std::find_if(hashes.begin(), hashes.end(), [&](std::uint64_t hash) { return hash != hashes[0]; });
  if (other != hashes.end()) {
    fail(
        "{}: rank {} read another deck than rank 0; the file differs between hosts, or it was changed just now, or the "
        "ranks were started with different overrides",
        arguments.deck, other - hashes.begin());
  }
  return deck;
}

void expect_ranks_of_slurm(int world_size) {
  const char* text = std::getenv("SLURM_NTASKS");
  if (text == nullptr || std::atoi(text) == world_size) return;
  usage_fail(
      "Slurm says {} tasks (SLURM_NTASKS), MPI sees {} ranks. Usually srun and MPI do not know of each other: start "
      "with "
      "srun --mpi=pmix, or with mpirun; or unset SLURM_NTASKS to run fewer ranks than the allocation has on purpose",
      text, world_size);
}

void set_threads(std::int64_t threads, const Communicator& world) {
  const std::vector<int> cores = allowed_cores();
  const std::string place = fmt::format("{}:{}", host_name(), fmt::join(cores, ","));
  const std::vector<std::uint64_t> places = world.all_gather(hash_name(place));
  const auto sharing = std::count(places.begin(), places.end(), hash_name(place));
  const auto own = std::max<std::int64_t>(1, std::int64_t(cores.size()) / sharing);
  omp_set_dynamic(0);
  omp_set_num_threads(int(threads > 0 ? threads : own));
}

void write_calibration(const std::string& file, const Communicator& world) {
  set_threads(0, world);
  const std::string text = machine_text(calibrate(world));
  on_root(world, [&] {
    if (file.empty()) {
      fmt::print("{}", text);
    } else {
      write_file(file, text);
      log_info("machine of {} ranks: {}", world.size(), file);
    }
  });
}

}  // namespace flanmoe
