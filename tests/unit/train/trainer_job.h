// A trainer over a golden model and samples in memory, as one rank of a test has it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "golden_job.h"
#include "train/trainer.h"

namespace amxt::test {

constexpr int64_t kLength = 12;      // of a sample
constexpr int64_t kVocabulary = 75;  // of the model

// Samples that are functions of their number; a read may be made to fail.
class Samples final : public io::Dataset {
 public:
  explicit Samples(int64_t count, uint64_t identity = 7, int64_t length = kLength)
      : count_(count), identity_(identity) {
    options_.sequence_length = length;
    options_.paths = {"samples"};
  }
  int64_t samples() const override { return count_; }
  int64_t documents() const override { return count_; }
  int64_t tokens() const override { return count_ * options_.sequence_length; }
  const io::DatasetOptions& options() const override { return options_; }
  Result<io::SampleCounts> read(int64_t sample, const io::SampleView& out) const override {
    if (fail) AMXT_TRY(fail(sample));
    const int64_t length = options_.sequence_length;
    for (int64_t t = 0; t < length; ++t) {
      const auto at = static_cast<size_t>(t);
      const auto token = [&](int64_t place) {
        return static_cast<int32_t>((sample * 29 + place * place + 3) % kVocabulary);
      };
      out.token[at] = token(t);
      out.target[at] = t + 1 < length ? token(t + 1) : io::kNoTarget;
      out.weight[at] = t + 1 < length ? 1.0f : 0.0f;
      out.document_start[at] = 0;
      out.position[at] = static_cast<int32_t>(t);
    }
    return io::SampleCounts{length, length - 1, static_cast<double>(length - 1)};
  }
  uint64_t fingerprint() const override { return identity_; }
  int32_t largest_token() const override { return largest; }
  bool has_loss_weight() const override { return false; }
  Result<std::unique_ptr<io::Dataset>> at(int64_t length, io::PackMode) const override {
    return std::unique_ptr<io::Dataset>(std::make_unique<Samples>(count_, identity_, length));
  }

  std::function<Status(int64_t sample)> fail;
  int32_t largest = kVocabulary - 1;

 private:
  int64_t count_;
  uint64_t identity_;
  io::DatasetOptions options_;
};

// `samples` samples from number `first` on.
inline train::Batch batch_of(int64_t first, int64_t samples) {
  const Samples data(first + samples);
  train::Batch batch;
  batch.resize(samples, kLength);
  for (int64_t i = 0; i < samples; ++i) {
    must(data.read(first + i, batch.sample(i)));
    batch.tokens += kLength;
  }
  return batch;
}

inline train::TrainOptions job_options() {
  train::TrainOptions options;
  options.compute_type = train::ComputeType::kFloat32;
  options.sequence_length = kLength;
  options.micro_batch = 1;
  options.accumulate = 2;
  options.learning_rate = 1e-2;
  options.schedule = train::ScheduleKind::kConstant;
  return options;
}

// A trainer of one rank and the lines that it logged.
class Rank {
 public:
  explicit Rank(std::shared_ptr<comm::Group> group, train::TrainOptions given = job_options(),
                const std::string& model = "llama3_2")
      : group_(std::move(group)) {
    train::TrainerSetup setup;
    setup.log = std::make_shared<Log>();
    setup.log->set([lines = lines_](LogLevel, const char* line) { lines->push_back(line); },
                   LogLevel::kInfo);
    setup.group = group_;
    setup.model = std::make_shared<const model::ModelDirectory>(
        must(model::ModelDirectory::open(golden_path(model))));
    setup.given = std::move(given);
    setup.threads = 1;
    setup.pin = false;
    Result<std::unique_ptr<train::Trainer>> made = train::Trainer::create(std::move(setup), {});
    if (made) {
      trainer_ = std::move(*made);
    } else {
      refused_ = std::move(made).error();
    }
  }

  train::Trainer& operator*() const { return *trainer_; }
  train::Trainer* operator->() const { return trainer_.get(); }
  const std::optional<Error>& refused() const { return refused_; }
  int rank() const { return group_->rank(); }

  Rank& loaded(const std::string& directory = golden_path("llama3_2")) {
    must(trainer_->load(directory, {}));
    return *this;
  }
  bool logged(const std::string& part) const {
    for (const std::string& line : *lines_) {
      if (line.find(part) != std::string::npos) return true;
    }
    return false;
  }
  std::vector<float> weights(const std::string& tensor = "model.norm.weight", int64_t rows = 48,
                             int64_t columns = 1) const {
    std::vector<float> values(static_cast<size_t>(rows * columns));
    must(trainer_->read_rows(tensor, store::RowKind::kMaster, 0, rows, values, {}));
    return values;
  }

 private:
  std::shared_ptr<comm::Group> group_;
  std::shared_ptr<std::vector<std::string>> lines_ = std::make_shared<std::vector<std::string>>();
  std::unique_ptr<train::Trainer> trainer_;
  std::optional<Error> refused_;
};

// Runs body on a thread for each rank, whose node is given; one that has failed does not keep the others.
inline void on_nodes(const std::vector<int>& nodes,
                     const std::function<void(std::shared_ptr<comm::Group>)>& body) {
  ThreadGroups groups(nodes);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < static_cast<int>(nodes.size()); ++rank) {
    threads.emplace_back([&groups, &body, rank] {
      const std::shared_ptr<comm::Group> group = groups.group(rank);
      try {
        body(group);
      } catch (const std::exception& failure) {
        ADD_FAILURE() << "rank " << rank << ": " << failure.what();
      }
      if (testing::Test::HasFailure()) group->abort("the test has failed");
    });
  }
  for (std::thread& thread : threads) thread.join();
}

inline void on_ranks(int world, const std::function<void(std::shared_ptr<comm::Group>)>& body) {
  on_nodes(std::vector<int>(static_cast<size_t>(world)), body);
}

inline void alone(const std::function<void(std::shared_ptr<comm::Group>)>& body) {
  on_ranks(1, body);
}

}  // namespace amxt::test
