package org.meteora.data.hub;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.util.Arrays;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;

/** Turns paths that a server chose into paths that stay in a folder. */
final class SafePaths {
  /** No backslash, no control character. */
  private static final String PLAIN = "[^\\\\\\x00-\\x1f\\x7f]*";

  private SafePaths() {}

  /**
   * {@code root/path}, when that is a place inside of {@code root} by name and on the disk.
   *
   * @throws UserException when the path is absolute, climbs ({@code ..}), holds a backslash, a
   *     drive letter or a control character, or meets a symlink that leads out
   */
  static Path resolve(Path root, String path) {
    boolean bad =
        path.matches("[A-Za-z]:.*")
            || Arrays.stream(path.split("/", -1))
                .anyMatch(part -> part.matches("(\\.\\.?)?") || !part.matches(PLAIN));
    if (bad) {
      throw refused(path, "leads out of the folder");
    }
    var at = root;
    try {
      var realRoot = Files.exists(root) ? root.toRealPath() : null;
      for (var part : path.split("/")) {
        at = at.resolve(part);
        if (realRoot != null
            && Files.isSymbolicLink(at)
            && !(Files.exists(at) && at.toRealPath().startsWith(realRoot))) {
          throw refused(path, "meets the link " + at + ", which leads out of " + root);
        }
      }
    } catch (InvalidPathException e) {
      throw refused(path, "is no file name here");
    } catch (IOException e) {
      throw new UserException("cannot look at " + at + ": " + AtomicFiles.reason(e), e);
    }
    if (Files.isDirectory(at, LinkOption.NOFOLLOW_LINKS)) {
      throw new UserException(at + " is a folder, but the repository has a file of that name");
    }
    return at;
  }

  private static UserException refused(String path, String why) {
    var shown = path.replaceAll("\\p{Cntrl}", "?");
    return new UserException(
        "the repository lists a file \"%s\", which %s: refused, nothing was downloaded"
            .formatted(shown.substring(0, Math.min(200, shown.length())), why));
  }
}
