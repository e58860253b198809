package org.meteora.eval.report;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.nio.channels.Channels;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeSet;
import org.meteora.UserException;
import org.meteora.eval.Answer;
import org.meteora.eval.Evaluator;
import org.meteora.eval.Scores;
import org.meteora.io.AtomicFiles;
import org.meteora.io.CacheFolders;
import org.meteora.io.FolderLock;
import org.meteora.io.FolderNames;
import org.meteora.io.Jsonl;

/**
 * The files of a saved evaluation: {@code <folder>/{meteora,base,peft/<adapter>}/<task>.json} and
 * beside it {@code <task>.answers.jsonl}. The format is described in docs/results.md.
 *
 * <p>While answers come they are appended to {@code <task>.partial.answers.jsonl}, with what they
 * are answers of in {@code <task>.partial.settings.json}; both go once the result is there. One
 * evaluation at a time writes a result.
 */
public final class SavedResult implements AutoCloseable {
  /** Raised when a field changes its meaning. */
  public static final int FORMAT = 1;

  /** Answers that have not reached the disk after so long are sent there. */
  private static final long SYNC_NANOS = 1_000_000_000L;

  private final Path folder;
  private final String task;
  private final FolderLock lock;
  private FileChannel partial;
  private long lastSync;

  /** What to do about a result, or the beginning of one, that is there. */
  public enum Existing {
    /** Replaced when its settings are the same, and complete. */
    KEEP_OTHERS,
    /** Its answers are taken over; its settings must be the same. */
    RESUME,
    OVERWRITE
  }

  /**
   * Finds out, before hours of work, whether the files can be written.
   *
   * @param resultFolder {@code eval_result_save_dir}
   * @param model {@code meteora}, {@code base} or an adapter's name
   * @throws UserException when the folder cannot be made or written to, or another evaluation is
   *     writing the same result
   */
  public SavedResult(Path resultFolder, String model, String task) {
    this.folder = folder(resultFolder, model);
    this.task = task;
    lock =
        FolderLock.take(
            folder,
            "." + task + ".lock",
            "another evaluation is writing "
                + file()
                + "; wait until it is done, or choose another --eval-result-save-dir");
    try {
      AtomicFiles.requireWritableFolder(folder);
    } catch (UserException e) {
      lock.close();
      throw e;
    }
  }

  /**
   * Where a model's results are.
   *
   * @param model {@code meteora}, {@code base} or an adapter's name
   */
  public static Path folder(Path resultFolder, String model) {
    return model.equals("meteora") || model.equals("base")
        ? resultFolder.resolve(model)
        : resultFolder.resolve("peft").resolve(FolderNames.require("the adapter", model));
  }

  /** The result's JSON file. */
  public Path file() {
    return folder.resolve(task + ".json");
  }

  public Path answersFile() {
    return folder.resolve(task + ".answers.jsonl");
  }

  private Path partialFile() {
    return folder.resolve(task + SavedAnswers.PARTIAL_ANSWERS);
  }

  private Path partialSettings() {
    return folder.resolve(task + SavedAnswers.PARTIAL_SETTINGS);
  }

  /**
   * Gets ready for answers, which are kept from now on as they come.
   *
   * @param settings of the evaluation and its generation
   * @param model settings and hashes of the model
   * @return answers that are there already, with {@link Existing#RESUME}
   * @throws UserException when a result, or the beginning of one, is there and must not be replaced
   */
  public List<Answer> begin(
      Map<String, Object> settings, Map<String, Object> model, Existing existing) {
    var parts = new LinkedHashMap<String, Object>();
    parts.put("settings", settings);
    parts.put("model", model);
    var mine = Jsonl.JSON.valueToTree(parts);
    List<Answer> there = List.of();
    if (existing == Existing.OVERWRITE) {
      delete(partialFile(), partialSettings());
    }
    boolean begun = Files.exists(partialSettings());
    if (begun) {
      var kept = SavedAnswers.readPartial(partialFile()).answers();
      if (existing == Existing.KEEP_OTHERS && !kept.isEmpty()) {
        throw new UserException(
            "%s holds %s answers of an evaluation that did not end: --resume goes on with it,"
                + " --overwrite begins again",
            partialFile(), kept.size());
      }
      if (existing == Existing.RESUME) {
        var refusal = "cannot resume: the answers in %s were made with other settings (%s)";
        requireSame(partialSettings(), mine, refusal, partialFile());
        there = kept;
      }
    }
    if (existing != Existing.OVERWRITE && Files.exists(file())) {
      var refusal =
          "%s holds a result of other settings (%s): --overwrite replaces it,"
              + " --eval-result-save-dir names another folder";
      requireSame(file(), mine, refusal, file());
      if (existing == Existing.RESUME && !begun) {
        there = SavedAnswers.read(answersFile());
      }
    }
    try {
      AtomicFiles.writeString(partialSettings(), Jsonl.pretty(parts));
      if (there.isEmpty()) {
        Files.deleteIfExists(partialFile());
      }
      partial =
          FileChannel.open(partialFile(), StandardOpenOption.WRITE, StandardOpenOption.CREATE);
      partial.truncate(SavedAnswers.readPartial(partialFile()).bytes());
      partial.position(partial.size());
    } catch (IOException e) {
      throw unwritten("", e);
    }
    return there;
  }

  /** The refusal is a format of the file that is named, and of what differs. */
  private static void requireSame(Path settings, JsonNode mine, String refusal, Path named) {
    JsonNode before;
    try {
      before = Jsonl.readFile(settings);
    } catch (UserException e) {
      before = Jsonl.JSON.createObjectNode(); // whatever it is, it is not ours
    }
    difference(before, mine)
        .ifPresent(
            difference -> {
              throw new UserException(refusal, named, difference);
            });
  }

  /** The first setting that differs, with both values. */
  private static Optional<String> difference(JsonNode before, JsonNode now) {
    for (var part : List.of("settings", "model")) {
      var names = new TreeSet<String>();
      now.path(part).fieldNames().forEachRemaining(names::add);
      before.path(part).fieldNames().forEachRemaining(names::add);
      for (var name : names) {
        var old = before.path(part).path(name);
        var mine = now.path(part).path(name);
        if (!old.toString().equals(mine.toString())) {
          return Optional.of(
              name.equals("sha256") || name.endsWith("_sha256")
                  ? name + " of the files is another"
                  : name + " was " + said(old) + ", now it is " + said(mine));
        }
      }
    }
    return Optional.empty();
  }

  private static String said(JsonNode value) {
    return value.isMissingNode()
        ? "not recorded"
        : value.isTextual() ? value.textValue() : "" + value;
  }

  /**
   * Keeps answers, in any order: appended at once, and sent to the disk by the first call, of no
   * answers too, that comes a second or more after the last sending.
   *
   * @throws UserException when they cannot be written; those before them stay
   */
  public void add(List<Answer> answers) {
    try {
      long good = partial.position();
      try {
        var out = Channels.newOutputStream(partial); // of which a write is whole
        for (var answer : answers) {
          out.write(SavedAnswers.line(answer));
        }
      } catch (IOException e) {
        partial.truncate(good);
        throw e;
      }
      if (System.nanoTime() - lastSync > SYNC_NANOS) {
        partial.force(false);
        lastSync = System.nanoTime();
      }
    } catch (IOException e) {
      throw unwritten("; the answers so far are kept there, --resume goes on with them", e);
    }
  }

  private UserException unwritten(String more, IOException e) {
    return new UserException(
        "cannot write " + partialFile() + ": " + AtomicFiles.reason(e) + more, e);
  }

  /**
   * Writes both files, the answers first. A process that dies in between leaves the answers of
   * {@link #add}, and no JSON that would not go with the answers beside it. Settings and model are
   * those of {@link #begin}.
   */
  public void write(
      List<String> arguments,
      Map<String, Object> settings,
      Map<String, Object> model,
      Evaluator.Run run,
      Scores scores) {
    delete(file());
    try {
      SavedAnswers.write(answersFile(), run.answers());
    } catch (UserException e) {
      throw Files.exists(partialFile())
          ? new UserException(
              "%s; the answers are kept in %s, --resume goes on", e.getMessage(), partialFile(), e)
          : e;
    }
    var json = new LinkedHashMap<String, Object>();
    json.put("format", FORMAT);
    json.put("task", task);
    json.put("created", Instant.now().truncatedTo(ChronoUnit.SECONDS).toString());
    json.put("arguments", arguments.stream().map(CacheFolders::shown).toList());
    json.put("settings", settings);
    json.put("model", model);
    json.put("samples", scores.samples());
    json.put("skipped", scores.skipped());
    json.put("problems", run.problems());
    json.put("metrics", scores.metrics());
    json.put("intervals", scores.intervals());
    json.put("warnings", scores.warnings());
    json.put("throughput", run.throughput());
    run.batching().ifPresent(batching -> json.put("batching", batching));
    json.put("answers", answersFile().getFileName().toString());
    AtomicFiles.writeString(file(), Jsonl.pretty(json));
    delete(partialSettings(), partialFile());
  }

  private static void delete(Path... files) {
    for (var file : files) {
      try {
        Files.deleteIfExists(file);
      } catch (IOException e) {
        throw new UserException("cannot replace " + file + ": " + AtomicFiles.reason(e), e);
      }
    }
  }

  /** Lets other evaluations write the same result; what was added stays for {@code --resume}. */
  @Override
  public void close() {
    try {
      if (partial != null) {
        boolean nothing = partial.size() == 0;
        if (!nothing && Files.exists(partialFile())) {
          partial.force(false);
        }
        partial.close();
        if (nothing) { // all answers were there: what is left behind would hide them
          delete(partialSettings(), partialFile());
        }
      }
    } catch (IOException e) {
      throw unwritten("", e);
    } finally {
      lock.close();
    }
  }
}
