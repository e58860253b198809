/** The Llama as the paper draws it: blocks that know no device. */
package org.meteora.model;
