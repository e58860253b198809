package org.meteora.data.source;

import java.nio.file.Path;
import org.meteora.data.tasks.Task;

/** Brings a task's source where {@link SourceLocator} looks for it, when it is not on disk. */
@FunctionalInterface
public interface SourceFetcher {
  /** Fetches nothing: what is missing stays missing. */
  SourceFetcher NONE = (task, folder) -> {};

  /**
   * @param folder where the source's files are expected
   * @throws org.meteora.UserException when fetching failed
   */
  void fetch(Task task, Path folder);
}
