package org.meteora.io;

import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import org.meteora.UserException;

/** Names that become folders: of tasks, of adapters. A name is never a path. */
public final class FolderNames {
  private FolderNames() {}

  /** Whether the name is one folder's: no separator, no control character, not {@code .} or ..). */
  public static boolean isOne(String name) {
    return !name.isBlank()
        && !name.matches("\\.\\.?")
        && name.chars().noneMatch(c -> c == '/' || c == '\\' || Character.isISOControl(c))
        && isPath(name);
  }

  /** Half a surrogate pair is none, nor is what the locale's encoding cannot write. */
  private static boolean isPath(String name) {
    try {
      return Path.of(name).getNameCount() == 1;
    } catch (InvalidPathException e) {
      return false;
    }
  }

  /**
   * The name itself.
   *
   * @param what it names, for the message: {@code "the adapter"}
   * @throws UserException when it is not one folder's name
   */
  public static String require(String what, String name) {
    if (!isOne(name)) {
      throw new UserException(
          "%s \"%s\" is not a folder's name (no path, no control characters, not . or ..)"
              .formatted(what, name));
    }
    return name;
  }
}
