package org.meteora.eval.command;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.meteora.data.config.MeteoraConfig;
import org.meteora.data.tasks.Tasks;
import org.meteora.eval.report.SavedResult;
import org.meteora.generate.GenerationConfig;
import org.meteora.io.CacheFolders;
import org.meteora.io.Digests;

/**
 * What is evaluated, and what is kept of it.
 *
 * @param limit samples at most; null for no limit but the task's
 * @param maxLength tokens of prompt and answer at most
 * @param maxNewTokens tokens of an answer at most; empty for what {@code maxLength} leaves
 * @param save scores and answers are written
 * @param existing what becomes of answers that are there already
 * @param routes the gates' choices are gathered and written
 * @param debug the first samples are shown
 * @param checkBatching samples that are answered once more, each alone
 * @param prefixCache beginnings that prompts share are computed once
 * @param arguments of the command line, for the saved result
 */
record EvaluationSettings(
    MeteoraConfig config,
    int batchSize,
    Integer limit,
    int maxLength,
    Optional<Integer> maxNewTokens,
    boolean save,
    SavedResult.Existing existing,
    boolean routes,
    boolean debug,
    int checkBatching,
    boolean prefixCache,
    List<String> arguments) {
  /**
   * What a saved result says of them.
   *
   * @param chosen how tokens are chosen, with the limit that held in the end
   */
  Map<String, Object> describe(TestSet test, GenerationConfig chosen) {
    var result = new LinkedHashMap<String, Object>();
    result.put("test_file", CacheFolders.shown(test.file()));
    result.put("test_sha256", Digests.ofFile(test.file()));
    result.put("tasks", test.task().parts());
    var own = new LinkedHashMap<>(test.task().metrics());
    own.keySet().removeAll(Tasks.names());
    if (!own.isEmpty()) {
      result.put("metrics", own);
    }
    result.put("batch_size", batchSize);
    result.put("limit", limit);
    result.put("max_length", chosen.maxLength());
    maxNewTokens.ifPresent(tokens -> result.put("max_new_tokens", tokens));
    if (!prefixCache) {
      result.put("prefix_cache", false);
    }
    result.put("no_repeat_ngram_size", chosen.noRepeatNgramSize());
    result.put("do_sample", chosen.sample());
    result.put("temperature", chosen.sample() ? chosen.temperature() : null);
    result.put("top_p", chosen.sample() ? chosen.topP() : null);
    result.put("top_k", chosen.sample() ? chosen.topK() : null);
    result.put("seed", chosen.sample() ? chosen.seed() : null);
    result.put("eos_token_ids", chosen.eosTokenIds());
    result.put("pad_token_id", chosen.padTokenId());
    return result;
  }
}
