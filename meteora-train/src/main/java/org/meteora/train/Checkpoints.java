package org.meteora.train;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.Consumer;
import java.util.regex.Pattern;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;
import org.meteora.io.FolderLock;
import org.meteora.io.Folders;
import org.meteora.io.Jsonl;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.safetensors.SafetensorsWriter;
import org.meteora.train.listener.Part;
import org.meteora.train.optim.AdamW;
import org.meteora.train.optim.FlatParameters;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The checkpoints of a training run: folders {@code checkpoint-00003000}, of which the last few are
 * kept. Each holds {@code trainer.safetensors} (parameters, both moments of AdamW, and in its
 * metadata the step, the data position and the seed, from which schedule and random state follow),
 * and the model as it would be written at the end.
 *
 * <p>A checkpoint is written into a hidden folder beside its place, every file fsynced, and appears
 * by one rename: a process that dies at any moment leaves whole checkpoints only.
 */
public final class Checkpoints {
  private static final Logger LOG = LoggerFactory.getLogger(Checkpoints.class);
  private static final Pattern NAME = Pattern.compile("checkpoint-(\\d{8,})");
  private static final String UNFINISHED = ".checkpoint-";
  private static final String FILE = "trainer.safetensors";
  private static final int FORMAT = 2;

  /** Steps before the part of the run that a checkpoint is of. */
  private static final String BEFORE = "steps_before_part";

  private final Path folder;
  private final int keep;

  /**
   * Where a run stands.
   *
   * @param settings all settings, for the record
   */
  public record State(long step, Part part, RunIdentity identity, Map<String, Object> settings) {}

  /**
   * Where a checkpoint stands.
   *
   * @param steps optimiser steps that were planned then
   */
  public record Position(long step, long steps) {}

  /**
   * @param keep how many checkpoints stay
   */
  public Checkpoints(Path folder, int keep) {
    this.folder = folder;
    this.keep = keep;
  }

  /**
   * Says that one run at a time trains into a folder, and removes what one that was killed had
   * written by half.
   *
   * @throws UserException when another run is at it
   */
  static FolderLock lock(Path folder) {
    var lock =
        FolderLock.take(
            folder,
            FolderLock.NAME,
            "another run is training into "
                + folder
                + "; wait until it is done, or choose another --output-dir");
    try {
      new Checkpoints(folder, 1).removeUnfinished();
    } catch (IOException e) {
      LOG.warn("cannot tidy {}: {}", folder, AtomicFiles.reason(e));
    }
    return lock;
  }

  /**
   * What an optimiser steps with, gathered from all processes.
   *
   * @param tensors the master values and both moments, {@code (size)} each
   * @param slots where each parameter lies in them
   */
  public record Trained(long step, Map<String, NDArray> tensors, List<FlatParameters.Slot> slots) {
    /**
     * Gathers it; all processes call this.
     *
     * @return at the first process; empty at the others
     */
    public static Optional<Trained> of(
        NDManager scope, FlatParameters parameters, AdamW optimizer) {
      var variance = parameters.gather(scope, optimizer.variance());
      var mean = parameters.gather(scope, optimizer.mean());
      // the last: an export may look at the master values in the buffer where they are gathered
      var values = parameters.gather(scope, parameters.masters());
      if (values.isEmpty()) {
        return Optional.empty();
      }
      var tensors = new LinkedHashMap<String, NDArray>();
      tensors.put("parameters", values.get());
      tensors.put("adam.mean", mean.orElseThrow());
      tensors.put("adam.variance", variance.orElseThrow());
      return Optional.of(new Trained(optimizer.steps(), tensors, parameters.slots()));
    }
  }

  /**
   * Writes a checkpoint and removes the oldest beyond those kept.
   *
   * @param export writes the model into the folder it is given
   * @throws UserException when the file system refuses (disk full); earlier checkpoints stay
   */
  public Path save(State state, Trained trained, Consumer<Path> export) {
    var target = folder.resolve("checkpoint-%08d".formatted(state.step()));
    var unfinished = folder.resolve(UNFINISHED + state.step() + ".tmp");
    try {
      Files.createDirectories(folder);
      removeUnfinished();
      Files.createDirectory(unfinished);
      export.accept(unfinished);
      SafetensorsWriter.write(
          unfinished.resolve(FILE), trained.tensors(), metadata(state, trained));
      AtomicFiles.syncFolder(unfinished);
      if (Files.exists(target)) {
        retire(target);
      }
      Files.move(unfinished, target, StandardCopyOption.ATOMIC_MOVE);
      AtomicFiles.syncFolder(folder);
    } catch (IOException | UncheckedIOException | UserException e) {
      remove(unfinished);
      throw new UserException(
          "the checkpoint of step %s could not be written: %s%s",
          state.step(),
          AtomicFiles.reason(e),
          latest().map(path -> "; the last one is " + path).orElse(""),
          e);
    }
    var all = list();
    all.subList(0, Math.max(0, all.size() - keep)).forEach(this::retire);
    return target;
  }

  private static Map<String, String> metadata(State state, Trained trained) {
    var result = new LinkedHashMap<String, String>();
    result.put("format", String.valueOf(FORMAT));
    result.put("step", String.valueOf(state.step()));
    result.put("planned_steps", String.valueOf(state.part().end()));
    result.put(BEFORE, String.valueOf(state.part().before()));
    result.put("optimizer_steps", String.valueOf(trained.step()));
    result.put("identity", Jsonl.JSON.valueToTree(state.identity()).toString());
    result.put("settings", Jsonl.JSON.valueToTree(state.settings()).toString());
    result.put("slots", Jsonl.JSON.valueToTree(trained.slots()).toString());
    return result;
  }

  /**
   * Fills parameters and optimiser from a checkpoint.
   *
   * @param identity of this run, compared with the checkpoint's
   * @return where it stands
   * @throws UserException naming what differs, or what is broken
   */
  public static Position restore(
      Path checkpoint, RunIdentity identity, FlatParameters parameters, AdamW optimizer) {
    var path = checkpoint.resolve(FILE);
    if (!Files.isRegularFile(path)) {
      throw new UserException("no checkpoint of a training in " + checkpoint + ": no " + FILE);
    }
    try (var file = SafetensorsFile.open(path)) {
      var metadata = file.metadata();
      if (!String.valueOf(FORMAT).equals(metadata.get("format"))) {
        throw new UserException(
            path + ": not the checkpoint of a training that this version can go on with");
      }
      identity.requireSame(checkpoint, Jsonl.JSON.readTree(StateFile.text(metadata, "identity")));
      var slots = Jsonl.JSON.valueToTree(parameters.slots()).toString();
      if (!slots.equals(metadata.get("slots"))) {
        throw new UserException(
            "cannot resume from %s: the trained parameters have other names or shapes", checkpoint);
      }
      long step = StateFile.number(metadata, "step");
      long steps = StateFile.number(metadata, "planned_steps");
      long before = before(metadata);
      long optimizerSteps = StateFile.number(metadata, "optimizer_steps");
      if (step > steps || optimizerSteps != step - before || step != stepOf(checkpoint)) {
        throw new StateFile.Damaged(
            "it is said to be at step %s of %s, its optimiser at step %s"
                .formatted(step, steps, optimizerSteps));
      }
      try (var scope = parameters.manager().newSubManager(ai.djl.Device.cpu())) {
        var values = StateFile.tensor(file, scope, "parameters", parameters.size(), false);
        var mean = StateFile.tensor(file, scope, "adam.mean", parameters.size(), false);
        var variance = StateFile.tensor(file, scope, "adam.variance", parameters.size(), true);
        parameters.takeSlice(parameters.masters(), values);
        parameters.takeSlice(optimizer.mean(), mean);
        parameters.takeSlice(optimizer.variance(), variance);
      }
      optimizer.restore(optimizerSteps);
      parameters.publishWhole();
      return new Position(step, steps);
    } catch (StateFile.Damaged | IOException | IllegalArgumentException | UserException e) {
      throw damaged(path, e);
    }
  }

  /**
   * Steps before the part of the run that a checkpoint is of; 0 in the first.
   *
   * @throws UserException when the checkpoint is damaged
   */
  static long before(Path checkpoint) {
    var path = checkpoint.resolve(FILE);
    try (var file = SafetensorsFile.open(path)) {
      return before(file.metadata());
    } catch (StateFile.Damaged | IllegalArgumentException | UserException e) {
      throw damaged(path, e);
    }
  }

  private static long before(Map<String, String> metadata) {
    return metadata.containsKey(BEFORE) ? StateFile.number(metadata, BEFORE) : 0;
  }

  /** What to say of a failure to read a checkpoint; a mistake that is not in its file stays. */
  private static UserException damaged(Path path, Exception why) {
    if (why instanceof UserException mistake && !why.getMessage().startsWith(path.toString())) {
      return mistake;
    }
    var checkpoint = path.getParent();
    var before =
        new Checkpoints(checkpoint.toAbsolutePath().getParent(), 1)
            .list().stream()
                .filter(other -> stepOf(other) < stepOf(checkpoint))
                .reduce((first, second) -> second);
    var reason = String.valueOf(why.getMessage());
    return new UserException(
        "cannot resume: %s is damaged: %s%s",
        path,
        reason.startsWith(path + ": ") ? reason.substring(path.toString().length() + 2) : reason,
        before
            .map(
                other ->
                    "; the one before it is %s: remove %s to go on from there"
                        .formatted(checkpoint.resolveSibling(other.getFileName()), checkpoint))
            .orElse("; there is none before it: start again in another folder"),
        why);
  }

  /** The run's whole checkpoints, oldest first. */
  public List<Path> list() {
    return Folders.having(folder, FILE).stream()
        .filter(entry -> stepOf(entry) >= 0)
        .sorted(Comparator.comparingLong(Checkpoints::stepOf))
        .toList();
  }

  /** The last whole checkpoint. */
  public Optional<Path> latest() {
    return list().stream().reduce((first, second) -> second);
  }

  /** Removes checkpoints of steps after {@code step}: a run resumed there makes them again. */
  public void removeAfter(long step) {
    for (var checkpoint : list()) {
      if (stepOf(checkpoint) > step) {
        LOG.info("removing {}, which lies after the checkpoint resumed from", checkpoint);
        retire(checkpoint);
      }
    }
  }

  private static long stepOf(Path checkpoint) {
    var matcher = NAME.matcher(checkpoint.getFileName().toString());
    return matcher.matches() ? Long.parseLong(matcher.group(1)) : -1;
  }

  /** Takes its name away first, so that a half-removed folder never looks like a checkpoint. */
  private void retire(Path checkpoint) {
    try {
      var hidden = folder.resolve(UNFINISHED + stepOf(checkpoint) + ".old");
      remove(hidden);
      Files.move(checkpoint, hidden, StandardCopyOption.ATOMIC_MOVE);
      remove(hidden);
    } catch (IOException e) {
      LOG.warn("cannot remove {}: {}", checkpoint, AtomicFiles.reason(e));
    }
  }

  private void removeUnfinished() throws IOException {
    try (var entries = Files.newDirectoryStream(folder, UNFINISHED + "*")) {
      entries.forEach(Checkpoints::remove);
    }
  }

  private static void remove(Path path) {
    try {
      if (Files.exists(path)) {
        AtomicFiles.removeTree(path);
      }
    } catch (IOException e) {
      LOG.warn("cannot remove {}: {}", path, AtomicFiles.reason(e));
    }
  }
}
