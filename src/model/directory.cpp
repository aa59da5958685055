#include "model/directory.h"

#include "model/survey.h"

namespace amxt::model {

Result<ModelDirectory> ModelDirectory::open_config(const std::string& directory) {
  ModelDirectory model;
  AMXT_ASSIGN(model.config_, read_config(directory));
  model.path_ = directory;
  model.specs_ = tensor_specs(model.config_);
  model.warnings_ = model.config_.warnings;
  return model;
}

Result<ModelDirectory> ModelDirectory::open(const std::string& directory) {
  AMXT_ASSIGN(ModelDirectory model, open_config(directory));
  Survey survey = survey_weights(directory, &model.config_, model.specs_);
  if (!survey.problems.empty()) return std::move(survey.problems.front());
  model.files_ = std::move(survey.files);
  model.locations_ = std::move(survey.locations);
  model.warnings_.insert(model.warnings_.end(), survey.warnings.begin(), survey.warnings.end());
  return model;
}

int64_t ModelDirectory::total_bytes() const {
  int64_t bytes = 0;
  for (const io::SafetensorsFile& file : files_) bytes += file.file_bytes();
  return bytes;
}

}  // namespace amxt::model
