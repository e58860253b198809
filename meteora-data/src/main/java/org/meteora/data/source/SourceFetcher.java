package org.meteora.data.source;

import java.nio.file.Path;
import org.meteora.data.tasks.Task;

/** Brings a task's source where {@link SourceLocator} looks for it, when it is not on disk. */
@FunctionalInterface
public interface SourceFetcher {
  /** Fetches nothing: what is missing stays missing. */
  SourceFetcher NONE = (task, folder) -> false;

  /**
   * @param folder where the source's files are expected
   * @return whether they are there now
   * @throws org.meteora.UserException when fetching failed
   */
  boolean fetch(Task task, Path folder);
}
