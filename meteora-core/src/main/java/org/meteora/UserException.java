package org.meteora;

/**
 * A mistake of the user's: a missing file, a misspelt key, a wrong shape. Its message is one line
 * that names the thing, says where it was looked for, and what would be right. The command line
 * prints that line alone and exits with code 2.
 */
public class UserException extends RuntimeException {
  public UserException(String message) {
    super(message);
  }

  public UserException(String message, Throwable cause) {
    super(message, cause);
  }
}
