package org.meteora;

/**
 * A mistake of the user's: a missing file, a misspelt key, a wrong shape. Its message is one line
 * that names the thing, says where it was looked for, and what would be right. The command line
 * prints that line alone and exits with code 2.
 */
public class UserException extends RuntimeException {
  private static final int LONGEST = 1500;

  /** One line that names the thing, where it is and what would be right. */
  public UserException(String message) {
    super(oneLine(message));
  }

  /** As {@link #UserException(String)}, with what was found underneath. */
  public UserException(String message, Throwable cause) {
    super(oneLine(message), cause);
  }

  /**
   * As {@link #UserException(String)}, formatted.
   *
   * @param arguments of the format; a {@link Throwable} at their end is what was found underneath
   */
  public UserException(String format, Object... arguments) {
    super(
        oneLine(format.formatted(arguments)),
        arguments[arguments.length - 1] instanceof Throwable cause ? cause : null);
  }

  /** What a file or a user wrote may hold line breaks, and be long. */
  private static String oneLine(String message) {
    var line = message.strip().replaceAll("\\s*\\R\\s*", " ");
    return line.length() <= LONGEST ? line : line.substring(0, LONGEST) + "…";
  }
}
