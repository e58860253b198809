package org.meteora.data.config;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.Optional;
import java.util.regex.Pattern;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;

/** The Hub's local cache, where the Python client keeps what it has fetched. */
public final class HubCache {
  /** Where models are downloaded to unless somebody says otherwise. */
  private static final String DOWNLOADS = "models/";

  private static final Pattern NAME =
      Pattern.compile("[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*");

  private HubCache() {}

  /** {@code HF_HOME}, or {@code huggingface} in the user's cache. */
  public static Path home(Map<String, String> environment, Path userHome) {
    return path(environment, "HF_HOME", userHome)
        .orElseGet(
            () ->
                path(environment, "XDG_CACHE_HOME", userHome)
                    .orElse(userHome.resolve(".cache"))
                    .resolve("huggingface"));
  }

  /** {@code HF_HUB_CACHE}, or {@code hub} in {@link #home}. */
  public static Path of(Map<String, String> environment, Path userHome) {
    return path(environment, "HF_HUB_CACHE", userHome)
        .orElseGet(() -> home(environment, userHome).resolve("hub"));
  }

  /**
   * A model's folder: the path itself where it exists or is no repository's name; else the newest
   * {@code main} of the repository {@code ORG/NAME} in the cache.
   *
   * @throws UserException when the cache does not hold it, with the command that fetches it
   */
  public static Path resolve(Path path, Map<String, String> environment, Path userHome) {
    var name = path.toString();
    if (Files.exists(path) || !NAME.matcher(name).matches()) {
      return path;
    }
    if (name.startsWith(DOWNLOADS)) { // a folder, and nobody's model on the Hub
      throw new UserException(
          ("no folder %s: set base_model_path in config.yaml, or --base-model-path, to a"
                  + " Llama folder, or fetch one: \"meteora download llama3-8b\" makes"
                  + " models/Meta-Llama-3-8B, \"meteora download ORG/%s --to %s\" that of another"
                  + " model")
              .formatted(name, name.substring(DOWNLOADS.length()), name));
    }
    var cache = of(environment, userHome);
    var repository = cache.resolve("models--" + name.replace("/", "--"));
    var main = repository.resolve("refs").resolve("main");
    if (Files.isRegularFile(main)) {
      String commit;
      try {
        commit = Files.size(main) > 200 ? "" : Files.readString(main).strip();
      } catch (IOException e) {
        throw new UserException("cannot read " + main + ": " + AtomicFiles.reason(e), e);
      }
      if (!commit.matches("[0-9a-zA-Z]{1,64}")) {
        throw new UserException(main + " does not hold the name of a commit");
      }
      var snapshot = repository.resolve("snapshots").resolve(commit);
      if (Files.isRegularFile(snapshot.resolve("config.json"))) {
        return snapshot;
      }
    }
    throw new UserException(
        ("no folder %s, and the Hub's cache %s holds no model of that name; if it is a"
                + " model of the Hub, fetch it with: meteora download %s --to models/%s")
            .formatted(name, cache, name, name.substring(name.indexOf('/') + 1)));
  }

  /** A variable's text, without white space at its ends; empty where that leaves nothing. */
  public static Optional<String> value(Map<String, String> environment, String name) {
    return Optional.ofNullable(environment.get(name))
        .map(String::strip)
        .filter(text -> !text.isEmpty());
  }

  /** A variable's path, with a leading {@code ~} for the home folder. */
  public static Optional<Path> path(Map<String, String> environment, String name, Path userHome) {
    return value(environment, name)
        .map(
            text ->
                text.equals("~") || text.startsWith("~/")
                    ? userHome.resolve(text.substring(Math.min(2, text.length())))
                    : MeteoraConfig.expand(text));
  }
}
