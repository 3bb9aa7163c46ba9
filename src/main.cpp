// flanmoe: pretrains, instruction-tunes, finetunes and evaluates dense and Mixture-of-Experts language models.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <optional>
#include <thread>

#include "base/error.hpp"
#include "base/hdf5.hpp"
#include "base/host.hpp"
#include "base/log.hpp"
#include "parallel/communicator.hpp"
#include "parallel/device.hpp"
#include "parallel/process_grid.hpp"
#include "parallel/stop.hpp"
#include "parallel/together.hpp"
#include "parallel/watchdog.hpp"
#include "stage/arguments.hpp"
#include "stage/selfcheck.hpp"
#include "stage/stage.hpp"
#include "stage/start.hpp"
#include "train/watch.hpp"

namespace {

constexpr std::chrono::seconds kTimeOfRankZero{3};
enum ExitCode : int { kDone = 0, kError = 1, kUsage = 2, kStoppedEarly = 75 };

}  // namespace

int main(int argc, char** argv) {
  using namespace flanmoe;
  const Launch launch = launch_of_environment();
  const StopSignals signals;          // from now on they only ask
  std::signal(SIGXFSZ, SIG_IGN);      // a file over the size limit is an error of the write, not the end
  std::optional<MpiEnvironment> mpi;  // outlives the catch, which must be able to end the other ranks
  try {
    // 1. What is asked for; some answers need no ranks.
    silence_hdf5();
    const Arguments arguments = parse_arguments(argc, argv);
    if (arguments.action == Action::watch) {
      watch(arguments.file);
      return kDone;
    }
    if (!needs_ranks(arguments)) {
      const auto print = [&](const std::string& text) {
        if (launch.rank == 0) fmt::print("{}", text);
        std::fflush(stdout);
      };
      print(answer(arguments));
      if (arguments.action == Action::check) print(verdict(arguments, launch));
      return kDone;
    }

    // 2. MPI.
    mpi.emplace(&argc, &argv);
    const Communicator world = Communicator::world();
    configure_log(world.rank(), "");
    expect_ranks_of_slurm(world.size());
    if (arguments.action == Action::calibrate) {
      write_calibration(arguments.file, world);
      return kDone;
    }

    // 3. The deck, the same on every rank, and what it computes on.
    const Deck deck = agree_on_deck(arguments, world);
    set_threads(deck.run.threads, world);
    const std::unique_ptr<Device> device = open_device(deck.run.device, world);
    // Without a watchdog: ranks outside a layout wait for it, however long it takes.
    if (arguments.action == Action::selfcheck) return selfcheck(deck, world, *device) ? kDone : kError;
    const Watchdog watchdog{std::chrono::seconds(deck.run.watchdog_seconds)};

    // 4. Who does what.
    const ProcessGrid grid(world.size(), world.rank(), int(deck.parallel.expert));
    Communicators communicators = Communicators::make(world, grid);
    device->connect(communicators);

    // 5. The stage.
    const Outcome outcome = run_stage(deck, grid, communicators, device->context());

    // 6. The end, together.
    world.barrier();
    return outcome == Outcome::stopped ? kStoppedEarly : kDone;
  } catch (const UsageError& error) {  // on every rank, before anything is written
    const int rank = mpi ? MpiEnvironment::world_rank() : launch.rank;
    if (rank == 0) put_error(fmt::format("flanmoe: {}", error.what()));
    return kUsage;
  } catch (const std::exception& error) {
    const int rank = mpi ? MpiEnvironment::world_rank() : launch.rank;
    // What all ranks throw alike rank 0 says, and ends them; should it not, they do.
    if (rank > 0 && dynamic_cast<const SharedError*>(&error) != nullptr) std::this_thread::sleep_for(kTimeOfRankZero);
    put_error(fmt::format("flanmoe: rank {} on host {}: {}", rank, host_name(), error.what()));
    MpiEnvironment::abort(kError);
  }
}
