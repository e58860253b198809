package org.meteora.io;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.meteora.UserException;

/** What lies in folders. */
public final class Folders {
  private Folders() {}

  /**
   * What is in a folder, sorted by name; nothing where there is no such folder.
   *
   * @throws UserException when it cannot be read
   */
  public static List<Path> entries(Path folder) {
    if (!Files.isDirectory(folder)) {
      return List.of();
    }
    try (var entries = Files.list(folder)) {
      return entries.sorted().toList();
    } catch (IOException | UncheckedIOException e) { // the latter while entries are listed
      if (!Files.exists(folder)) { // another process has removed it meanwhile
        return List.of();
      }
      throw new UserException("cannot read the folder " + folder + ": " + AtomicFiles.reason(e), e);
    }
  }

  /** As {@link #entries}; nothing where it cannot be read. */
  public static List<Path> readable(Path folder) {
    try {
      return entries(folder);
    } catch (UserException e) {
      return List.of();
    }
  }

  /**
   * The folders in a folder that hold a file of this name, sorted by name; nothing where there is
   * no such folder.
   *
   * @throws UserException when it cannot be read
   */
  public static List<Path> having(Path folder, String file) {
    return entries(folder).stream().filter(it -> Files.isRegularFile(it.resolve(file))).toList();
  }
}
