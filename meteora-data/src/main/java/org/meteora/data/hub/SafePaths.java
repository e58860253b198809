package org.meteora.data.hub;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;

/** Turns paths that a server chose into paths that stay in a folder. */
final class SafePaths {
  private SafePaths() {}

  /**
   * {@code root/path}, when that is a place inside of {@code root} by name and on the disk.
   *
   * @throws UserException when the path is absolute, climbs ({@code ..}), holds a backslash, a
   *     drive letter or a control character, or meets a symlink that leads out
   */
  static Path resolve(Path root, String path) {
    boolean bad =
        path.isEmpty()
            || path.startsWith("/")
            || path.endsWith("/")
            || path.matches("[A-Za-z]:.*")
            || path.indexOf('\\') >= 0
            || path.chars().anyMatch(c -> c < 0x20 || c == 0x7f);
    for (var part : path.split("/", -1)) {
      bad |= part.isEmpty() || part.equals(".") || part.equals("..");
    }
    if (bad) {
      throw refused(path, "leads out of the folder");
    }
    var at = root;
    try {
      var realRoot = Files.exists(root) ? root.toRealPath() : null;
      for (var part : path.split("/")) {
        at = at.resolve(part);
        if (realRoot != null && Files.isSymbolicLink(at)) {
          if (!Files.exists(at) || !at.toRealPath().startsWith(realRoot)) {
            throw refused(path, "meets the link " + at + ", which leads out of " + root);
          }
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
