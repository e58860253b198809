package org.meteora.eval.report;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;
import org.meteora.eval.Answer;
import org.meteora.eval.EvalTask;
import org.meteora.eval.Evaluator;
import org.meteora.eval.Scores;
import org.meteora.eval.Throughput;
import org.meteora.io.Jsonl;

class SavedTest {
  @TempDir Path folder;

  private static final String TASK = "strategyqa";
  private static final List<Answer> ANSWERS =
      List.of(
          new Answer(
              TASK,
              0,
              "[INST] Ä? [/INST]\n",
              "Yes. It is.",
              "[INST] Ä? [/INST]\nYes. It was.",
              "yes. it was.",
              5,
              4,
              false,
              false),
          new Answer(TASK, 1, "[INST] long [/INST]\n", "No", "", "", 9000, 0, true, false),
          new Answer(
              TASK, 2, "[INST] B [/INST]\n", "No.", "[INST] B [/INST]\n", "", 5, 0, false, false));

  @Test
  void savedAnswersScoreTheSame() {
    var scores = Scores.of(EvalTask.of(TASK), ANSWERS);
    var saved = new SavedResult(folder, "my_adapter", TASK); // no other run wants its lock
    var run = new Evaluator.Run(ANSWERS, new Throughput(2, 2, 10, 4), Map.of());
    saved.write(List.of("--task", TASK), Map.of("batch_size", 1), Map.of("k", 2), run, scores);
    assertThat(saved.file()).isEqualTo(folder.resolve("peft/my_adapter/strategyqa.json"));
    assertThat(SavedAnswers.read(saved.answersFile())).isEqualTo(ANSWERS);
    assertThat(SavedAnswers.read(saved.file())).isEqualTo(ANSWERS);
    assertThat(Scores.of(EvalTask.of(TASK), SavedAnswers.read(saved.answersFile())))
        .isEqualTo(scores);

    var json = Jsonl.readFile(saved.file());
    assertThat(json.get("samples").asInt()).isEqualTo(2);
    assertThat(json.get("skipped").asInt()).isEqualTo(1);
    assertThat(json.at("/metrics/Accuracy").asDouble()).isEqualTo(0.5);
    assertThat(json.at("/metrics/BLEU/text").asText()).startsWith("BLEU = ");
    assertThat(json.at("/metrics/BLEU/brevity_penalty").asDouble()).isEqualTo(1);
    assertThat(json.at("/metrics/bleu_as_published/score").isNumber()).isTrue();
    assertThat(json.at("/metrics/ROUGE/rouge-l/f").isNumber()).isTrue();
    assertThat(json.at("/warnings/empty_answers").asInt()).isEqualTo(1);
    assertThat(json.at("/throughput/samples_per_second").asDouble()).isEqualTo(1);
    assertThat(json.get("arguments").get(1).asText()).isEqualTo(TASK);
  }

  @Test
  void aFolderThatCannotBeMadeIsFoundAtOnce() throws IOException {
    var file = Files.writeString(folder.resolve("results"), "a file, not a folder");
    assertThatThrownBy(() -> new SavedResult(file, "meteora", TASK))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("results");
  }

  @Test
  void brokenAnswersAreNamed() throws IOException {
    var file = folder.resolve("a.answers.jsonl");
    Files.writeString(file, "{\"task\":\"alpaca\",\"prompt\":\"p\",\"truth\":\"t\"}\n");
    assertThatThrownBy(() -> SavedAnswers.read(file))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("a.answers.jsonl:1")
        .hasMessageContaining("decoded");
    Files.writeString(file, "");
    assertThatThrownBy(() -> SavedAnswers.read(file)).hasMessageContaining("no answers");
    var line = "{\"task\":\"%s\",\"prompt\":\"p\",\"truth\":\"t\",\"decoded\":\"d\"}\n";
    Files.writeString(file, line.formatted("alpaca") + line.formatted("gsm8k"));
    assertThatThrownBy(() -> SavedAnswers.read(file)).hasMessageContaining(":2");
  }

  @Test
  void theTableShowsEveryFigure() {
    var text = ScoreTable.of("strategyqa (base)", Scores.of(EvalTask.of(TASK), ANSWERS));
    assertThat(text)
        .contains("2 samples, 1 skipped", "  BLEU: BLEU = ", "bleu_as_published", "rouge-l: r ")
        .contains("Accuracy: 0.5000", "warning: 1 empty answers");
  }

  private static final Map<String, Object> SETTINGS = Map.of("batch_size", 3);
  private static final Map<String, Object> MODEL = Map.of("model", "base");

  private SavedResult base() {
    return new SavedResult(folder, "base", TASK);
  }

  private void evaluateAll(Map<String, Object> settings, SavedResult.Existing existing) {
    try (var saved = base()) {
      saved.begin(settings, MODEL, existing);
      saved.add(ANSWERS);
      saved.write(
          List.of(),
          settings,
          MODEL,
          new Evaluator.Run(ANSWERS, new Throughput(2, 2, 10, 4), Map.of()),
          Scores.of(EvalTask.of(TASK), ANSWERS));
    }
  }

  @Test
  void answersAreKeptAsTheyComeAndGoneOnWith() throws IOException {
    var partial = folder.resolve("base/strategyqa.partial.answers.jsonl");
    try (var saved = base()) {
      assertThat(saved.begin(SETTINGS, MODEL, SavedResult.Existing.KEEP_OTHERS)).isEmpty();
      saved.add(ANSWERS.subList(2, 3));
      saved.add(ANSWERS.subList(0, 1));
      assertThat(partial).content().hasLineCount(2); // a kill now would leave this
    }
    Files.writeString(
        partial, "{\"task\":\"strategyqa\",\"pro", java.nio.file.StandardOpenOption.APPEND);
    assertThat(SavedAnswers.read(partial)).containsExactly(ANSWERS.get(2), ANSWERS.get(0));
    try (var saved = base()) {
      assertThatThrownBy(() -> saved.begin(SETTINGS, MODEL, SavedResult.Existing.KEEP_OTHERS))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("2 answers")
          .hasMessageContaining("--resume");
      assertThatThrownBy(
              () -> saved.begin(Map.of("batch_size", 4), MODEL, SavedResult.Existing.RESUME))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("batch_size was 3, now it is 4");
      assertThat(saved.begin(SETTINGS, MODEL, SavedResult.Existing.RESUME))
          .containsExactly(ANSWERS.get(2), ANSWERS.get(0));
      saved.add(ANSWERS.subList(1, 2));
    }
    assertThat(SavedAnswers.read(partial)).hasSize(3);
    evaluateAll(SETTINGS, SavedResult.Existing.OVERWRITE);
    assertThat(partial).doesNotExist();
    assertThat(folder.resolve("base").toFile().list())
        .containsExactlyInAnyOrder(
            "strategyqa.json", "strategyqa.answers.jsonl", ".strategyqa.lock");
  }

  @Test
  void aResultOfOtherSettingsIsNotReplaced() {
    evaluateAll(SETTINGS, SavedResult.Existing.KEEP_OTHERS);
    evaluateAll(SETTINGS, SavedResult.Existing.KEEP_OTHERS);
    var other = Map.<String, Object>of("batch_size", 4);
    assertThatThrownBy(() -> evaluateAll(other, SavedResult.Existing.KEEP_OTHERS))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("base/strategyqa.json")
        .hasMessageContaining("batch_size was 3, now it is 4")
        .hasMessageContaining("--overwrite");
    assertThatThrownBy(() -> evaluateAll(other, SavedResult.Existing.RESUME))
        .isInstanceOf(UserException.class);
    evaluateAll(other, SavedResult.Existing.OVERWRITE);
    try (var saved = base()) {
      assertThat(saved.begin(other, MODEL, SavedResult.Existing.RESUME)).isEqualTo(ANSWERS);
    }
  }

  @Test
  void oneEvaluationAtATimeWritesAResult() {
    try (var saved = base()) {
      assertThatThrownBy(this::base)
          .isInstanceOf(UserException.class)
          .hasMessageContaining("another evaluation is writing");
      new SavedResult(folder, "other", TASK).close();
    }
    base().close();
  }
}
